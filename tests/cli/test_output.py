"""Output of commands in real processes: full disks, closed pipes, ASCII, progress, warnings."""

import ast
import json
import os
import pty
import re
import subprocess
import sys
import threading
import warnings

import pytest

from modulate.utils.library_warnings import show_library_warnings
from tests.paths import ROOT, SMALL

LIGHT = (
    ["--help"],
    ["ls"],
    ["ls", "--json"],
    ["plugins"],
    ["plugins", "--json"],
    ["hosts"],
    ["hosts", "--json"],
    ["cat", "gazeqwen_tiny"],
    ["cat", "gazeqwen_tiny", "--resolved"],
    ["recipe", "schema"],
    ["recipe", "schema", "--sweeps"],
    ["sweep", "ablations/tabletop", "--dry-run"],
    ["train", "--help"],
    ["data", "--help"],  # the help of all others comes from the same parser
)


def run(args, prefix="", cwd=None, **more):
    """Run a command through a shell with the redirections ``prefix``."""
    line = " ".join(f"'{part}'" for part in (sys.executable, "-m", "modulate", *map(str, args)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    return subprocess.run(
        ["bash", "-c", f"{line} {prefix}"],
        capture_output=True,
        cwd=cwd,
        env=environment,
        timeout=240,
    )


def is_one_line_error(done, why):
    """Return whether a command ended with the one-line error about standard output."""
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1 and len(lines) == 1, (done.returncode, lines)
    return lines[0].startswith(
        f"Error: Standard output cannot be written: {why}. The printed output is lost; "
    )


@pytest.mark.parametrize("args", LIGHT, ids=" ".join)
def test_a_full_disk_and_a_closed_pipe_are_one_line_and_an_exit_code(args, tmp_path):
    assert is_one_line_error(run(args, ">/dev/full", tmp_path), "No space left on device")
    closed = run(args, "| true; exit ${PIPESTATUS[0]}", tmp_path)
    assert b"Traceback" not in closed.stderr
    # 0: everything was in the pipe before its reader closed it
    assert closed.returncode in (0, 1)


def test_a_pipe_whose_reader_left_before_the_first_output_is_an_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "modulate", "ls"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert is_one_line_error(done, "Broken pipe")


@pytest.mark.parametrize("prefix", [">&-", ">&- <&-"])
def test_a_closed_stdout_is_an_error_and_its_handle_is_not_reused(prefix, tmp_path):
    assert is_one_line_error(run(["ls"], prefix, tmp_path), "Bad file descriptor")


def test_closed_stdin_or_stderr_changes_nothing(tmp_path):
    usual = run(["ls"], cwd=tmp_path).stdout
    for prefix in ("<&-", "2>&-", "2>/dev/full", "<&- 2>&-"):
        done = run(["ls"], prefix, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, usual, b""), prefix
    assert run(["cat", "nothing"], "2>/dev/full", tmp_path).returncode == 1
    assert run(["cat", "nothing"], "2>&-", tmp_path).returncode == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
@pytest.mark.parametrize(
    "args", [a for a in LIGHT if "--help" not in a or a == ["--help"]], ids=" ".join
)
def test_characters_that_an_encoding_lacks_are_escaped(args, environment, tmp_path):
    done = run(args, cwd=tmp_path, **environment)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr
    if "--json" in args or "schema" in args:
        assert json.loads(done.stdout)
        assert done.stdout.isascii() or environment["PYTHONIOENCODING"] == "utf-8"
    if args == ["cat", "gazeqwen_tiny"]:
        assert done.stdout == next((ROOT / "recipes").rglob("gazeqwen_tiny.yaml")).read_bytes()


def test_names_beyond_ascii_are_escaped_in_errors(tmp_path):
    recipe = tmp_path / "réçîpe→.yaml"
    recipe.write_text("name: x\nextends: nothing → here\n", encoding="utf-8")
    for name in (recipe.name, os.fsdecode(b"not\xffutf8.yaml"), "gone→.yaml"):
        done = subprocess.run(
            [sys.executable, "-m", "modulate", "check", name],
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"Error: ")
        assert done.stderr.isascii()
        assert b"Traceback" not in done.stderr


TEXT_METHODS = {"read_text": 1, "write_text": 2}
"""Methods of paths that read or write text: number of positional arguments with the encoding."""

OPENERS = {"open", "io.open", "gzip.open", "bz2.open", "lzma.open", "os.fdopen"}
"""Functions that open the file that is their first argument."""


def texts_without_encoding(source):
    """Yield calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(
            keyword.arg == "encoding" for keyword in node.keywords
        ):
            continue
        name = ast.unparse(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = modes[1:] if name in OPENERS else modes[:1]
        texts = [each.value for each in modes if isinstance(each, ast.Constant)]
        # A method `open` with another first argument than a mode is not that of a path.
        opens = name in OPENERS or (method == "open" and len(texts) == len(modes))
        # The function write_text of modulate.utils.atomic_files always writes UTF-8.
        if (opens and not any("b" in str(text) for text in texts)) or (
            method in TEXT_METHODS and len(node.args) < TEXT_METHODS[method]
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "call",
    [
        "p.read_text()",
        "p.write_text(text)",
        "open(p, 'w')",
        "open(p)",
        "p.open()",
        "p.open('a')",
        "p.open(mode='a')",
        "gzip.open(p, 'rt')",
        "os.fdopen(handle, 'w')",
    ],
)
def test_text_in_the_encoding_of_the_locale_is_found(call):
    assert list(texts_without_encoding(call)) == [call]


@pytest.mark.parametrize(
    "call",
    [
        "p.read_text(encoding='utf-8')",
        "p.write_text(text, 'utf-8')",
        "write_text(p, text)",
        "open(p, 'rb')",
        "p.open('rb')",
        "p.open(mode='wb')",
        "Image.open(p, formats=FORMATS)",
        "av.open(str(p), 'w')",
        "os.open(p, os.O_RDONLY)",
    ],
)
def test_bytes_and_text_in_a_stated_encoding_are_not(call):
    assert not list(texts_without_encoding(call))


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    sources = [*(ROOT / "modulate").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    found = {
        str(path.relative_to(ROOT)): calls
        for path in sources
        if (calls := list(texts_without_encoding(path.read_text(encoding="utf-8"))))
    }
    assert not found


# --- a run

FEW = [
    "lora=null",
    "training.stages.1.train=[modulator]",
    "data.params.max_per_split=4",
    "evaluation.conditions=[blank]",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a non-ASCII name, and in it a run whose table went to a full disk."""
    folder = tmp_path_factory.mktemp("é→ü")
    args = [
        "train",
        SMALL,
        f"data.params.root={folder}/wörld",
        "--runs",
        folder / "rüns",
        "--cache",
        folder / "cäche",
        *FEW,
    ]
    return folder, run(args, ">/dev/full", PYTHONIOENCODING="ascii")


def test_a_run_whose_table_cannot_be_printed_is_still_finished(trained):
    folder, done = trained
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1 and lines[-1].startswith(
        "Error: Standard output cannot be written: No space left on device. "
    ), lines
    assert "Traceback" not in done.stderr.decode() and done.stderr.isascii()
    assert (
        json.loads((folder / "rüns" / "small" / "metrics.json").read_text(encoding="utf-8"))["n"]
        > 0
    )


@pytest.mark.parametrize(
    ("prefix", "environment", "code"),
    [
        (">/dev/full", {}, 1),
        ("| true; exit ${PIPESTATUS[0]}", {}, 1),
        ("2>/dev/full", {}, 0),
        ("2>&-", {}, 0),
        ("", {"PYTHONIOENCODING": "ascii"}, 0),
    ],
)
def test_eval_and_report_survive_unwritable_streams(trained, prefix, environment, code):
    folder, _ = trained
    for args in (
        ["eval", folder / "rüns" / "small", "--cache", folder / "cäche"],
        ["report", folder / "rüns" / "small", "--gallery", "0", "--out", folder / "repört"],
    ):
        done = run(args, prefix, **environment)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr
        if environment:
            assert done.stdout.isascii() or "report" in args


def test_a_short_run_prints_one_line_of_progress(trained):
    _, done = trained
    lines = [
        line for line in done.stderr.decode().splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)
    ]
    assert len(lines) == 1
    assert re.search(
        r" done after 0:\d\d:\d\d: stage modulator (\d+)/\1, .*loss \d+\.\d+.*; stage joint .*;"
        r" evaluate signal (\d+)/\2, .*; evaluate blank ",
        lines[0],
    )


# --- progress


# --- warnings

LIBRARY = """
import warnings
from transformers.utils import logging
LOG = logging.get_logger("transformers.models.made_up")
def old(k=0):
    LOG.warning_once("logged: `old` is deprecated")
    LOG.warning("logged each time: `old` is deprecated")
    warnings.warn("future: `old` goes away", FutureWarning, stacklevel=1)
    warnings.warn("past: `old` is deprecated", DeprecationWarning, stacklevel=1)
    warnings.simplefilter("default", ResourceWarning)  # which makes Python forget what it said
"""
DEPRECATIONS = (
    "logged: `old` is deprecated",
    "logged each time: `old` is deprecated",
    "future: `old` goes away",
    "past: `old` is deprecated",
)

IN_A_COMMAND = """
import sys, types
import transformers, modulate.cli, modulate.inference.pipeline
made = types.ModuleType("transformers.models.made_up")
exec(compile(LIBRARY, "made_up.py", "exec"), made.__dict__)
before = modulate.inference.pipeline.understand
def deprecated(model):
    [made.old() for _ in range(3)]
    return before(model)
modulate.inference.pipeline.understand = deprecated
modulate.cli.main(sys.argv[1:])
"""


def run_script(code, *args, option=()):
    code = f"LIBRARY = {LIBRARY!r}\n{code}"
    return subprocess.run(
        [sys.executable, *option, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "", "PYTHONPATH": str(ROOT)},
    )


def test_deprecations_of_libraries_in_a_command_are_shown_once_as_plain_lines(tmp_path):
    done = run_script(
        IN_A_COMMAND, "bench", SMALL, f"data.params.root={tmp_path}/none", "--steps", "2"
    )
    for text in DEPRECATIONS:
        assert done.stderr.count(text) == 1, done.stderr
        assert f"\nwarning: {text}\n" in f"\n{done.stderr}"


def test_deprecations_are_shown_in_python_too_and_the_users_settings_stay():
    code = """
import types, warnings
import transformers
from modulate.utils.library_warnings import show_library_warnings
made = types.ModuleType("transformers.models.made_up")
exec(compile(LIBRARY, "made_up.py", "exec"), made.__dict__)
logger = transformers.utils.logging.logging.getLogger("transformers")
handlers = logger.handlers[:]
formatter = warnings.formatwarning
own = lambda: [f for f in warnings.filters if f[2] is not ResourceWarning]
filters = own()
for _ in range(3):
    with show_library_warnings(), show_library_warnings():
        made.old()
assert logger.handlers == handlers
assert warnings.formatwarning is formatter
assert own() == filters
"""
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == sorted(f"warning: {text}" for text in DEPRECATIONS)
    quiet = run_script(code, option=("-W", "ignore"))
    assert quiet.returncode == 0
    assert sorted(quiet.stderr.splitlines()) == sorted(
        f"warning: {text}" for text in DEPRECATIONS[:2]
    )


DEPRECATED_STEPS = """
import sys, types
from pathlib import Path
import modulate, transformers
from modulate.config.recipe import load_recipe
from modulate.evaluation.evaluate import evaluate
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.trainer import train
from modulate.utils import library_warnings

made = types.ModuleType("transformers.models.made_up")
exec(compile(LIBRARY, "made_up.py", "exec"), made.__dict__)

def report(step, call, owner, name):
    # While one method of the library warns, only the blocks around its callers can show it.
    before = getattr(owner, name)
    def deprecated(*args, **kwargs):
        made.old()
        return before(*args, **kwargs)
    library_warnings._shown.clear()
    transformers.utils.logging.warning_once.cache_clear()
    print(f"step: {step}", file=sys.stderr)
    setattr(owner, name, deprecated)
    try:
        return call()
    finally:
        setattr(owner, name, before)

folder = Path(sys.argv[1])
recipe = load_recipe(sys.argv[2], sys.argv[3:])
Config = transformers.Qwen2_5_VLConfig
pipeline = report(
    "make a pipeline", lambda: Pipeline(recipe, folder / "cache"), Config, "get_text_config"
)
pipeline.make_data()
Processor = type(pipeline.processor)
sample = pipeline.samples("val")[0]
modulation = pipeline.fresh_modulation()
run = Run.create(recipe, folder)
modulation = report("train", lambda: train(run, pipeline), Processor, "__call__")
report("evaluate", lambda: evaluate(run, pipeline, modulation), Processor, "__call__")
attachment = report(
    "attach", lambda: modulation.attach(pipeline.model), Config, "get_text_config"
)
prepared = pipeline.prepare(sample)

def conditioned():
    with attachment.condition([prepared.clip_inputs()]):
        pipeline.model(**pipeline.collate([prepared]).inputs)

report("conditioned forward", conditioned, type(pipeline.model), "forward")
attachment.detach()
assistant = modulate.Assistant(
    pipeline.model, pipeline.processor, modulation, pipeline.backbone, modulate.Usage.of(recipe)
)
clip = sample.clip
report(
    "ask an assistant",
    lambda: assistant.ask(clip.file, sample.question, at=3.0, gaze=clip.signals["gaze"]),
    Processor,
    "__call__",
)
"""


@pytest.fixture(scope="module")
def lines_by_step(tmp_path_factory):
    """What a script of a user printed on standard error, by step of the script."""
    folder = tmp_path_factory.mktemp("steps")
    data = [f"data.params.root={folder}/data", "data.params.max_per_split=2"]
    stages = ["training.stages.1.train=[modulator]", "lora=null"]
    done = run_script(DEPRECATED_STEPS, folder, SMALL, *data, *stages, "evaluation.conditions=[]")
    assert done.returncode == 0, done.stderr
    steps = {}
    for line in done.stderr.splitlines():
        if line.startswith("step: "):
            steps[line.removeprefix("step: ")] = lines = []
        else:
            lines.append(line)
    return steps


@pytest.mark.parametrize(
    "step",
    [
        "make a pipeline",
        "train",
        "evaluate",
        "attach",
        "conditioned forward",
        "ask an assistant",
    ],
)
def test_deprecations_during_each_step_of_a_script_reach_its_user_once(lines_by_step, step):
    for text in DEPRECATIONS:
        assert lines_by_step[step].count(f"warning: {text}") == 1, lines_by_step[step]


def test_code_that_records_warnings_gets_all_of_them():
    with show_library_warnings(), pytest.warns(FutureWarning) as found:
        for _ in range(2):
            warnings.warn("recorded", FutureWarning, stacklevel=1)
    assert len(found) == 2


def test_blocks_in_several_threads_leave_nothing_behind():
    before = warnings.formatwarning

    def work():
        for _ in range(200):
            with show_library_warnings():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert warnings.formatwarning is before


def test_on_a_terminal_logs_of_transformers_appear_above_the_bars():
    code = """
import sys, time, types, transformers
from modulate.cli import output
from modulate.cli.progress import display
from modulate.utils.library_warnings import show_library_warnings
made = types.ModuleType("transformers.models.made_up")
exec(compile(LIBRARY, "made_up.py", "exec"), made.__dict__)
with (
    output.guarded_streams(),
    show_library_warnings(every=True),
    display() as shown,
    show_library_warnings(),
):
    for k in range(8):
        shown.update("stage a", k, 8); time.sleep(0.03)
        if k == 4: made.old()
"""
    main, side = pty.openpty()
    code = f"LIBRARY = {LIBRARY!r}\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=side,
        stderr=side,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait(60) == 0
    for text in DEPRECATIONS:  # each on a line of its own, from its beginning
        assert (
            len(
                re.findall(
                    rb"(?:\n|\r|\x1b\[2K)warning: " + re.escape(text.encode()) + rb"\r?\n", seen
                )
            )
            == 1
        ), seen
