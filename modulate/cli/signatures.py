"""Signatures as the source writes them, for the reference page.

The text of an annotation *object* differs with the releases of Python, numpy and pydantic: what is
written ``NDArray[np.uint8]`` has three texts. So annotations are taken from the source; only names,
order and defaults of parameters come from the objects.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PACKAGE = "modulate"
MAX_WIDTH = 88
"""Longest signature shown on one line."""

BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
"""Arguments of pydantic's ``Field`` that restrict a value."""


def signature(name: str, value: Any) -> str:
    """Return ``name(parameters) -> result``, one parameter a line where it is long.

    A class that does not say how it is constructed is shown as ``class name(bases)``.
    """
    if inspect.isclass(value) and not _is_constructed(value):
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        return f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    if not callable(value) or _is_foreign(value):
        return name
    written, bounds, result = _annotations(value)
    shown = [
        (parameter.kind, _parameter(parameter, written.get(parameter.name)), parameter.name)
        for parameter in inspect.signature(value).parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    result = f" -> {result}" if result else ""
    short = f"{name}({', '.join(text for _, text, _ in _with_star(shown))}){result}"
    if not shown or (len(short) <= MAX_WIDTH and not bounds):
        return short
    lines = []
    for _, text, parameter_name in _with_star(shown):
        comment = f"  # {bounds[parameter_name]}" if parameter_name in bounds else ""
        lines.append(f"    {text},{comment}")
    return "\n".join([f"{name}(", *lines, f"){result}"])


Shown = tuple[Any, str, str]
"""Kind, text and name of a parameter."""


def _with_star(shown: list[Shown]) -> Iterator[Shown]:
    """Yield the parameters, and a ``*`` before the first that must be given by name."""
    starred = False
    for kind, text, name in shown:
        if kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            yield kind, "*", ""
        starred = starred or kind in {kind.KEYWORD_ONLY, kind.VAR_POSITIONAL}
        yield kind, text, name


def _parameter(parameter: inspect.Parameter, annotation: str | None) -> str:
    text = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        text = f"*{text}"
    elif parameter.kind is parameter.VAR_KEYWORD:
        text = f"**{text}"
    if annotation:
        text += f": {annotation}"
    if parameter.default is parameter.empty:
        return text
    return text + (" = " if annotation else "=") + _default(parameter.default)


def _default(value: Any) -> str:
    # A function would be shown with its address, which differs from run to run.
    if inspect.isfunction(value):
        return "..."
    if isinstance(value, BaseModel) and not value.model_dump(exclude_defaults=True):
        return f"{type(value).__name__}()"
    return repr(value).replace("'", '"')


def _is_foreign(value: Any) -> bool:
    return not value.__module__.startswith(PACKAGE)


def _is_constructed(cls: type) -> bool:
    generated = hasattr(cls, "__dataclass_fields__") or hasattr(cls, "model_fields")
    return generated or (_constructor(cls) is not None and not issubclass(cls, Exception))


def _own_classes(cls: type) -> list[tuple[ast.ClassDef, str]]:
    """Return source and module of ``cls`` and its bases, without those of libraries."""
    own = [each for each in cls.__mro__ if not _is_foreign(each)]
    return [(_definition(each.__module__, each.__qualname__), each.__module__) for each in own]


def _constructor(cls: type) -> tuple[ast.FunctionDef, str] | None:
    """Return source and module of the constructor; None if we did not write it."""
    for definition, module in _own_classes(cls):
        for node in definition.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return node, module
    return None


def _annotations(value: Any) -> tuple[dict[str, str], dict[str, str], str]:
    """Return annotations and bounds by parameter name, and the result's annotation."""
    if not inspect.isclass(value):
        function: Any = inspect.unwrap(value)
        node = _definition(function.__module__, function.__qualname__)
        result = _text(node.returns, function.__module__) if node.returns else ""
        return _of_function(node, function.__module__), {}, result
    constructor = _constructor(value)
    if constructor is not None:
        return _of_function(*constructor), {}, ""
    annotations: dict[str, str] = {}
    bounds: dict[str, str] = {}
    for definition, module in reversed(_own_classes(value)):
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotations[node.target.id] = _text(node.annotation, module)
                if limits := _bounds(node.value):
                    bounds[node.target.id] = limits
    return annotations, bounds, ""


def _of_function(node: ast.FunctionDef, module: str) -> dict[str, str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, arguments.vararg]
    every += [*arguments.kwonlyargs, arguments.kwarg]
    return {
        argument.arg: _text(argument.annotation, module)
        for argument in every
        if argument is not None and argument.annotation is not None
    }


def _bounds(value: ast.expr | None) -> str:
    """Return the restrictions that a call of ``Field`` states, as ``ge=1, le=4``."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "Field"):
        return ""
    stated = [ast.unparse(each) for each in value.keywords if each.arg in BOUNDS]
    return ", ".join(stated).replace("'", '"').replace(" ** ", "**")


@cache
def _parsed(module: str) -> ast.Module:
    # From the file, since import hooks hide the source from `inspect`.
    file = importlib.import_module(module).__file__ or ""
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> Any:
    """Return the source of a class or function; ``name`` is its qualified name."""
    node: Any = _parsed(module)
    for part in name.split("."):
        node = next(each for each in node.body if getattr(each, "name", None) == part)
    return node


# --- annotations


def _text(annotation: ast.expr, module: str) -> str:
    """Return an annotation of ``module``: names without modules, our own aliases written out."""
    return ast.unparse(_Shortened(module).visit(annotation)).replace("'", '"')


class _Shortened(ast.NodeTransformer):
    """Removes what a reader does not need, within one module."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        # A name written as text, because it is defined later.
        if isinstance(node.value, str):
            return self.visit(ast.parse(node.value, mode="eval").body)  # type: ignore[no-any-return]
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        name = ast.unparse(node.value).rpartition(".")[2]
        if name == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])  # type: ignore[no-any-return]
        # Literals and the axes of tensors are texts, not names.
        if name == "Literal":
            return node
        if _is_tensor(self.module, node.value):
            return ast.parse(re.sub(r"(['\"]) +", r"\1", ast.unparse(node)), mode="eval").body
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(right, ast.BinOp):  # an alias of a union, which needs no parentheses
            return ast.BinOp(ast.BinOp(left, node.op, right.left), node.op, right.right)
        return ast.BinOp(left, node.op, right)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        found = _alias(node.id, self.module)
        if found is None:
            return node
        expression, module = found
        return _Shortened(module).visit(expression)  # type: ignore[no-any-return]


def _is_tensor(module: str, node: ast.expr) -> bool:
    value: Any = importlib.import_module(module)
    for part in ast.unparse(node).split("."):
        value = getattr(value, part, None)
    return getattr(value, "__module__", "").startswith("jaxtyping")


def _alias(name: str, module: str) -> tuple[ast.expr, str] | None:
    """Return the expression that ``name`` stands for, if one of our modules assigns it."""
    if not module.startswith(PACKAGE):
        return None
    for node in _parsed(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            # A call makes something of its own, as TypeVar does.
            return None if isinstance(node.value, ast.Call) else (node.value, module)
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            return _alias(name, node.module or "")
    return None
