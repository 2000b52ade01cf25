"""Run folders with predictions written by hand, so that every figure of a report can be counted."""

import json
from html.parser import HTMLParser

from modulate.config.recipe import dump, load_recipe
from modulate.evaluation.predictions import Prediction, as_lines
from modulate.report.results import compute_results
from modulate.report.runs import group_runs, read_run

EASY = "present_object_identification_easy"
HARD = "present_object_identification_hard"
VIDEOS = [f"video{index}" for index in range(10)]
LORA_STAGE = "training.stages=[{name: lora, train: [lora], epochs: 1, lr: 1.0e-3}]"
LOG = [
    {"stage": "modulator", "step": 1, "steps": 2, "loss": 3.0, "accuracy": 0.25},
    {"stage": "modulator", "step": 2, "steps": 2, "loss": 2.0, "accuracy": 0.5},
    {"stage": "joint", "step": 1, "steps": 1, "loss": 1.0, "accuracy": 1.0},
    {"stage": "joint", "step": 1, "validation_accuracy": 0.75},
]

# Condition → task → one digit per question: 1 is correct, 0 is wrong.
SIGNAL = {
    "signal": {EASY: "1" * 15 + "0", HARD: "1" * 12},
    "none": {EASY: "1" * 4 + "0" * 12, HARD: "1" * 3 + "0" * 9},
    "shuffled": {EASY: "01" * 8, HARD: "0" * 12},
}
BLANK = {
    "blank": {EASY: "1" * 5 + "0" * 11, HARD: "0" * 12},
    "none": {EASY: "0" * 16, HARD: "0" * 12},
}
LORA = {"none": {EASY: "0" * 8 + "1" * 8, HARD: "0" * 12}}

HOSTILE = "</title><script>alert('x')<img src=q onerror=alert(1)>&amp;|`_*"


def predictions(condition, digits, task, active_steps=2):
    """Predictions of one task, two questions per video, correct where ``digits`` has a 1."""
    return [
        Prediction(
            id=f"{task}/{index}",
            task=task,
            group=VIDEOS[index // 2],
            condition=condition,
            answer=0,
            prediction=0 if digit == "1" else 1,
            correct=digit == "1",
            logits=(1.0, 0.5, 0.2, 0.1),
            active_steps=active_steps,
        )
        for index, digit in enumerate(digits)
    ]


def text_predictions(condition, digits, task=EASY):
    """Answers in text: 1 is exact, 0 has one word of two, - has none."""
    texts = {"1": "red plate", "0": "red cup", "-": "cup"}
    return [
        Prediction(
            id=f"{task}/{index}",
            task=task,
            group=VIDEOS[index // 2],
            condition=condition,
            answer=None,
            prediction=None,
            correct=digit == "1",
            logits=(),
            active_steps=2,
            text=texts[digit],
            answers=("the red plate",),
            token_f1={"1": 1.0, "0": 0.5, "-": 0.0}[digit],
            bleu={"1": 0.6, "0": 0.3, "-": 0.0}[digit],
            rouge_l={"1": 0.8, "0": 0.4, "-": 0.0}[digit],
        )
        for index, digit in enumerate(digits)
    ]


def write_text_run(root, name, digits, *overrides, seed=0):
    """Write an evaluated run with answers in text, and read it. ``digits``: by condition."""
    target = root / name
    target.mkdir(parents=True)
    settings = [f"name={name}", f"seed={seed}", "evaluation.bootstrap=200", "answer=text"]
    recipe = load_recipe("gazeqwen_tiny", [*settings, *overrides])
    (target / "recipe.yaml").write_text(dump(recipe))
    records = [
        record
        for condition, marks in digits.items()
        for record in text_predictions(condition, marks)
    ]
    (target / "predictions.jsonl").write_text(as_lines(records))
    return read_run(target)


def failed_prediction(condition, sample="lost", task=EASY, error="VideoError: cut off"):
    """A prediction of a sample that failed."""
    return Prediction(sample, task, "video9", condition, 0, None, False, (), 0, error)


def write_run(root, name, digits, *overrides, seed=0, folder=None, more=()):
    """Write an evaluated run and read it. ``digits``: condition → task → digits."""
    target = root / (folder or name)
    target.mkdir(parents=True)
    settings = [f"name={name}", f"seed={seed}", "evaluation.bootstrap=200", *overrides]
    (target / "recipe.yaml").write_text(dump(load_recipe("gazeqwen_tiny", settings)))
    records = [
        record
        for condition, tasks in digits.items()
        for task, task_digits in tasks.items()
        for record in predictions(condition, task_digits, task)
    ]
    (target / "predictions.jsonl").write_text(as_lines([*records, *more]))
    (target / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return read_run(target)


def results_of_first(runs):
    """Results of the first group of ``runs``, the others being its possible companions."""
    groups = group_runs(runs)
    return compute_results(groups[0], groups)


class ParsedPage(HTMLParser):
    """Tags with their attributes, and the text; asserts that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.text = ""
        self.open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "img", "br", "hr", "wbr"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        """The attributes of every tag of that name."""
        return [attributes for tag, attributes in self.tags if tag == name]
