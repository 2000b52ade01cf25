"""Generate all mutants of a module: found in its syntax tree, applied to its text."""

import ast
import difflib
import random
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
SILENT = {"warn", "print", "info", "debug"}
"""Calls with texts for people: a mutant may remove the call, but not change its text."""
UNREAD = {"description", "help", "stacklevel", "strict", "encoding"}
"""Keyword arguments that are never changed.

They hold texts for people, zip's assertion, or UTF-8, the default encoding wherever this runs.
"""
DECLARED = {"dataclass", "TypeVar"}
"""Calls that declare a class or a type, like annotations."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module: bytes ``start`` to ``end`` of its file become ``text``."""

    path: str
    operator: str
    line: int
    last: int
    start: int
    end: int
    text: str
    inside: bool
    """Whether the change is in a function's body, so that importing the module does not run it."""

    def apply(self, source: bytes) -> bytes:
        """Return ``source`` with the change in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """Return the change as a unified diff without context."""
        was, now = (text.decode().splitlines() for text in (source, self.apply(source)))
        return "\n".join(difflib.unified_diff(was, now, self.path, self.path, n=0, lineterm=""))

    def changed(self, source: bytes) -> tuple[str, str]:
        """Return the lines removed and the lines added, each stripped and joined by spaces."""
        lines = self.diff(source).splitlines()[3:]
        was = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
        now = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
        return was, now


def mutants(root: Path, path: str, lines: Collection[int] | None = None) -> list[Mutant]:
    """Return all mutants of ``root / path`` that compile and differ from it as programs.

    ``lines``: the numbers of lines to change; by default all.
    """
    source = (root / path).read_bytes()
    tree = ast.parse(source)
    whole = ast.dump(tree)
    found: dict[bytes, Mutant] = {}
    for mutant in _Finder(path, source).of(tree):
        if lines is not None and source[: mutant.start].count(b"\n") + 1 not in lines:
            continue
        text = mutant.apply(source)
        try:
            changed = ast.parse(text)
            compile(changed, path, "exec")
        except (SyntaxError, ValueError):
            continue
        if ast.dump(changed) != whole:
            found.setdefault(text, mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def sample(every: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return a random sample of a module's mutants, in the order of its text."""
    if not every:
        return []
    chosen = random.Random(f"{seed}:{every[0].path}").sample(every, min(count, len(every)))
    return sorted(chosen, key=lambda mutant: (mutant.start, mutant.end, mutant.text))


class _Finder:
    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def of(self, tree: ast.Module) -> Iterator[Mutant]:
        for node, inside in self._walk(tree, False):
            for operator, start, end, text in self._changes(node):
                yield Mutant(self.path, operator, *self._lines(node), start, end, text, inside)

    def _lines(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword)
        last = node.end_lineno or node.lineno
        return node.lineno, last

    def _walk(self, node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
        """Yield the nodes that affect behavior, in the text's order."""
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in _meant(node):
            body = (
                inside or isinstance(node, ast.Lambda) or (function and isinstance(child, ast.stmt))
            )
            if isinstance(child, ast.expr | ast.stmt | ast.keyword):
                yield child, body
            yield from self._walk(child, body)

    def _at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(
            node.end_lineno, node.end_col_offset
        )

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _changes(self, node: ast.AST) -> Iterator[tuple[str, int, int, str]]:
        for kind, change in _CHANGES.items():
            if isinstance(node, kind):
                yield from change(self, node)

    def _between(
        self, left: ast.expr, right: ast.expr, was: str, now: str
    ) -> tuple[int, int, str] | None:
        """Return the edit that replaces the operator between two operands."""
        start = self._span(left)[1]
        end = self._span(right)[0]
        word = r"\s+".join(map(re.escape, was.split()))
        found = re.search(word.encode(), self.source[start:end])
        return (start + found.start(), start + found.end(), now) if found else None

    def _compare(self, node: ast.Compare) -> Iterator[tuple[str, int, int, str]]:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators):
            was, others = COMPARISONS[type(op)]
            if _tolerant(left) or _tolerant(right):
                others = others[1:]
            for now in others:
                edit = self._between(left, right, was, now)
                if edit:
                    yield "comparison", *edit

    def _bool_op(self, node: ast.BoolOp) -> Iterator[tuple[str, int, int, str]]:
        was, now = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            edit = self._between(left, right, was, now)
            if edit:
                yield "and, or", *edit

    def _bin_op(self, node: ast.BinOp) -> Iterator[tuple[str, int, int, str]]:
        if type(node.op) in ARITHMETIC:
            was, now = ARITHMETIC[type(node.op)]
            edit = self._between(node.left, node.right, was, now)
            if edit:
                yield "arithmetic", *edit

    def _unary(self, node: ast.UnaryOp) -> Iterator[tuple[str, int, int, str]]:
        start, _ = self._span(node)
        sign = {ast.Not: "not", ast.USub: "-"}.get(type(node.op))
        if sign:
            yield "not" if sign == "not" else "arithmetic", start, start + len(sign), ""

    def _constant(self, node: ast.Constant) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node)
        if isinstance(node.value, bool):
            yield "constant", start, end, str(not node.value)
        elif isinstance(node.value, int):
            yield "constant", start, end, str(node.value + 1)
            if node.value:
                yield "constant", start, end, str(node.value - 1)
        elif isinstance(node.value, float):
            far = 2 * node.value if abs(node.value) > 100 else node.value + 1
            yield "constant", start, end, repr(far)

    def _removed(self, node: ast.stmt) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node)
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call):
            return  # a docstring, or a yield
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name | ast.Tuple) for target in node.targets
        ):
            return  # every later use would be a NameError
        yield "removed statement", start, end, "pass"

    def _return(self, node: ast.Return) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node)
        if node.value is not None and not (
            isinstance(node.value, ast.Constant) and node.value.value is None
        ):
            yield "removed return value", start, end, "return None"
        if node.value is None:
            yield "removed statement", start, end, "pass"

    def _jump(self, node: ast.stmt) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node)
        yield "removed statement", start, end, "pass"
        yield (
            "removed statement",
            start,
            end,
            "break" if isinstance(node, ast.Continue) else "continue",
        )

    def _call(self, node: ast.Call) -> Iterator[tuple[str, int, int, str]]:
        if _named(node) in DECLARED:
            return
        if isinstance(node.func, ast.Name) and node.func.id in CALLED:
            yield "comparison", *self._span(node.func), CALLED[node.func.id]
        ordered = _named(node) not in CALLED  # min(a, b) is min(b, a)
        for left, right in zip(node.args, node.args[1:]):
            if ordered and not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                (start, mid), (again, end) = self._span(left), self._span(right)
                joint = self.source[mid:again].decode()
                yield "swapped arguments", start, end, self._text(right) + joint + self._text(left)
        for word in node.keywords:
            if word.arg is not None and word.arg not in UNREAD:
                yield "dropped keyword", *self._without(*self._span(word)), ""

    def _without(self, start: int, end: int) -> tuple[int, int]:
        """Widen a keyword argument's place to the comma that goes with it."""
        after = re.match(rb"\s*,\s*", self.source[end:])
        if after:
            return start, end + after.end()
        before = re.search(rb",\s*$", self.source[:start])
        return (before.start() if before else start), end

    def _slice(self, node: ast.Slice) -> Iterator[tuple[str, int, int, str]]:
        for bound in (node.lower, node.upper, node.step):
            if bound is not None:
                yield "slice", *self._span(bound), ""

    def _branches(self, node: ast.IfExp) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node.test)
        yield "not", start, end, f"(not ({self._text(node.test)}))"

    def _condition(self, node: ast.If | ast.While) -> Iterator[tuple[str, int, int, str]]:
        start, end = self._span(node.test)
        if isinstance(node, ast.If) and _named(node.test) != "TYPE_CHECKING":
            yield "not", start, end, f"not ({self._text(node.test)})"


_CHANGES = {
    ast.Compare: _Finder._compare,
    ast.BoolOp: _Finder._bool_op,
    ast.BinOp: _Finder._bin_op,
    ast.UnaryOp: _Finder._unary,
    ast.Constant: _Finder._constant,
    ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete: _Finder._removed,
    ast.Return: _Finder._return,
    ast.Continue | ast.Break: _Finder._jump,
    ast.Call: _Finder._call,
    ast.Slice: _Finder._slice,
    ast.IfExp: _Finder._branches,
    ast.If: _Finder._condition,
}


def _tolerant(node: ast.expr) -> bool:
    """Return whether a comparison has a tolerance, so that its exact boundary has no meaning."""
    found = (constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant))
    return any(isinstance(value, float) and 0 < value < 1e-3 for value in found)


def _named(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return (
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else ""
    )


def _meant(node: ast.AST) -> Iterable[ast.AST]:
    """Return the children of ``node`` that affect behavior: no types, no texts for people."""
    if isinstance(node, ast.Raise | ast.Assert) or (
        isinstance(node, ast.Call) and _named(node) in SILENT
    ):
        return ()
    if isinstance(node, ast.If) and _named(node.test) == "TYPE_CHECKING":
        return node.orelse
    if isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
    ):
        return ()
    skipped: list[ast.AST | None] = []
    if isinstance(node, ast.arg | ast.AnnAssign):
        skipped.append(node.annotation)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        skipped += [node.returns]
    if isinstance(node, ast.ClassDef):
        skipped += [decorator for decorator in node.decorator_list if _named(decorator) in DECLARED]
    if isinstance(node, ast.Call):
        skipped += [word for word in node.keywords if word.arg in UNREAD]
    return [
        child for child in ast.iter_child_nodes(node) if not any(child is each for each in skipped)
    ]
