"""Every word of the tabletop world: questions, prompts and the small host's vocabulary.

The host was trained on exactly these strings, British spelling included: changing one means
training it anew.
"""

from modulate_tabletop.render import CLASSES, COLORS

LETTERS = "ABCD"
EASY = "present_object_identification_easy"
HARD = "present_object_identification_hard"
ATTRIBUTE = "present_object_attribute_recognition"
ALERT = "proactive_gaze_triggered_alert"
GAZE_ONLY = (EASY, HARD, ATTRIBUTE, ALERT)
NAMING = "present_object_naming"
DESCRIBE = "Describe the table."
ALERT_SUFFIX = "Based on the video so far, should the alert be triggered?"
EMPTY = "nothing"

WORDS = [
    "At",
    "what",
    "is",
    "the",
    "viewer",
    "looking",
    "at",
    "which",
    "object",
    "colour",
    "of",
    "Question",
    "Options",
    "The",
    "best",
    "option",
    "answer",
    "Describe",
    "table",
    "Based",
    "on",
    "video",
    "so",
    "far",
    "should",
    "alert",
    "Alert",
    "be",
    "triggered",
    "an",
    "wants",
    "when",
    "looks",
    "Yes",
    "No",
    "A",
    "B",
    "C",
    "D",
    "E",
    "nothing",
    "user",
    "assistant",
    "system",
    "marked",
    "now",
    "first",
    "last",
    "before",
    "after",
    "next",
    "place",
    "to",
    "reach",
    "for",
    "will",
    "has",
    "not",
    "been",
    "was",
    "moved",
    "appeared",
    "vanished",
    "taken",
    "in",
    "which",
    "order",
    "and",
    "did",
    "while",
    "look",
    "never",
    "or",
    "red",
    "thing",
    "hand",
    "things",
    "new",
    "seen",
    "In",
    "Which",
    "What",
    "It",
    "it",
    "this",
    "that",
    "from",
    "by",
    "a",
    "does",
    "reached",
    "touched",
    "viewed",
    "sequence",
    "past",
    "present",
    "future",
    "appears",
    "on",
    "a",
    "scene",
]
PUNCTUATION = [*list("?.:,!;-'\"()/"), "\n", "\n\n"]
SPECIAL = [
    "<|endoftext|>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
NUMBERS = [str(number) for number in range(100)] + [f"{number:02d}" for number in range(10)]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *PUNCTUATION, *NUMBERS, *CLASSES, *COLORS, *WORDS]))


def clock(seconds: float) -> str:
    """Return seconds as mm:ss: 17.0 → ``00:17``."""
    whole = int(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def question_easy(seconds: float) -> str:
    """Return the question about the object looked at; its options lie far apart."""
    return f"At {clock(seconds)}, what is the viewer looking at?"


def question_hard(seconds: float) -> str:
    """Return the question about the object looked at; its options lie close together."""
    return f"At {clock(seconds)}, which object is the viewer looking at?"


def question_attribute(seconds: float) -> str:
    """Return the question about the color of the object looked at."""
    return f"At {clock(seconds)}, what colour is the object the viewer is looking at?"


def question_naming(seconds: float) -> str:
    """Return the question about class and color of the object looked at."""
    return f"At {clock(seconds)}, what is the viewer looking at, and what colour is it?"


def question_alert(word: str) -> str:
    """Return the alert's condition; the benchmark's suffix follows it."""
    return f"Alert when the viewer is looking at the {word}."


def with_options(question: str, options: list[str]) -> str:
    """Return the multiple-choice prompt, which a bare letter answers."""
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    return f"Question: {question}\nOptions:\n{lines}\n\nThe best option is:"


def without_options(question: str) -> str:
    """Return the open prompt, which the option's word answers."""
    return f"Question: {question}\nThe answer is:"
