"""Every word of the tabletop world: questions, prompts and the small host's vocabulary.

The one place where the strings are written.
"""

from modulate_tabletop.render import CLASSES, COLOURS

LETTERS = "ABCD"
EASY = "present_object_identification_easy"
HARD = "present_object_identification_hard"
ATTRIBUTE = "present_object_attribute_recognition"
ALERT = "proactive_gaze_triggered_alert"
GAZE_ONLY = (EASY, HARD, ATTRIBUTE, ALERT)
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
NUMBERS = [str(n) for n in range(100)] + [f"{n:02d}" for n in range(10)]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *PUNCTUATION, *NUMBERS, *CLASSES, *COLOURS, *WORDS]))


def clock(seconds: float) -> str:
    """17.0 -> ``00:17``."""
    whole = int(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def question_easy(seconds: float) -> str:
    """What is looked at, options from places far apart."""
    return f"At {clock(seconds)}, what is the viewer looking at?"


def question_hard(seconds: float) -> str:
    """What is looked at, options from neighbouring places."""
    return f"At {clock(seconds)}, which object is the viewer looking at?"


def question_attribute(seconds: float) -> str:
    """The colour of what is looked at."""
    return f"At {clock(seconds)}, what colour is the object the viewer is looking at?"


def question_alert(word: str) -> str:
    """The alert's condition; the benchmark's suffix follows it."""
    return f"Alert when the viewer is looking at the {word}."


def with_options(question: str, options: list[str]) -> str:
    """The multiple-choice prompt, answered by a bare letter."""
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    return f"Question: {question}\nOptions:\n{lines}\n\nThe best option is:"


def without_options(question: str) -> str:
    """The open prompt, answered by the option's word."""
    return f"Question: {question}\nThe answer is:"
