"""The keys of schema.py: what each is, what it may be, its default. Help and error messages need no more.

    describe()["train.epochs"]      # ('Passes over the training triplets.', 'an integer >= 1', 10)

They are read from the source. pydantic, which checks values, takes longer to import than `--help` may take.
"""

import ast
import difflib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

_MODULE = "biencoder.config.schema"
_ONE_OF = "one of "
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@cache
def describe() -> dict[str, tuple[str, str, Any]]:
    """Dotted key → (description, allowed values, default), as `--help` and the documentation show them."""
    loader: Any = (spec := find_spec(_MODULE)) and spec.loader
    tree = ast.parse(loader.get_source(_MODULE))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def walk(section: ast.ClassDef, prefix: str) -> Iterator[tuple[str, tuple[str, str, Any]]]:
        for field, docstring in zip(section.body, [*section.body[1:], None], strict=True):
            match field, docstring:
                case ast.AnnAssign(target=ast.Name(name), annotation=ast.Name(kind)), _:
                    yield from walk(classes[kind], f"{prefix}{name}.")
                case (
                    ast.AnnAssign(ast.Name(name), ast.Subscript(slice=ast.Tuple([kind, *marks])), ast.expr() as default),
                    ast.Expr(ast.Constant(str(text))),
                ):
                    yield prefix + name, (" ".join(text.split()), _allowed(kind, marks), ast.literal_eval(default))

    return dict(walk(classes["Config"], ""))


def _allowed(kind: ast.expr, marks: Sequence[ast.expr]) -> str:
    """What a field may be, whose type is `Annotated[kind, *marks]`."""
    match kind:
        case ast.Subscript(slice=ast.Tuple() as values):
            return _ONE_OF + ", ".join(ast.literal_eval(values))
        case ast.Name(name):
            given = {word.arg: word.value for mark in marks if isinstance(mark, ast.Call) for word in mark.keywords}
            if "pattern" in given:
                return "whole numbers above 0 with commas between them, or nothing"
            bounds = [f"{sign} {_number(given[arg])}" for arg, sign in _BOUNDS.items() if arg in given]
            return f"{_KINDS[name]} {' and '.join(bounds)}".rstrip()
    raise TypeError(f"what is {ast.unparse(kind)}?")


def _number(value: ast.expr) -> str:
    number = ast.literal_eval(value)
    return f"{number:g}" if number < 1e6 else f"{number:.0f}"


def nearest_key(name: str) -> str:
    """The valid dotted key that resembles `name` most."""
    keys = list(describe())
    return (difflib.get_close_matches(name, keys, n=1, cutoff=0.0) or keys)[0]


def choices(name: str) -> list[str]:
    """The values of a key that takes one of a few."""
    return describe()[name][1].removeprefix(_ONE_OF).split(", ")
