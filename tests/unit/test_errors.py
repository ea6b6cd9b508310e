"""The tree of errors: what its docstring draws is what there is."""

import ast
import re
from collections.abc import Iterator

from biencoder import errors
from biencoder.config.paths import PROJECT_ROOT
from biencoder.errors import BiencoderError, InternalError


def tree(error: type[Exception], indent: str = "", branch: str = "") -> Iterator[str]:
    yield " ".join([branch + error.__name__, *([str(int(error.exit_code))] if issubclass(error, BiencoderError) else [])])
    children = error.__subclasses__()
    for child in children:
        is_last = child is children[-1]
        yield from tree(child, indent + ("    " if is_last else "│   "), indent + ("└── " if is_last else "├── "))


def test_the_docstring_draws_all_errors_with_their_exit_codes() -> None:
    drawn = (errors.__doc__ or "").splitlines()
    columns = [re.match(r"[│├└─ ]*\w+( +\d+)?", line) for line in drawn]
    found = [re.sub(r"(?<=\w) +(?=\d)", " ", match[0]) for match in columns if match]
    for line in [*tree(BiencoderError), *tree(InternalError)]:
        assert line in found, line


def test_no_other_module_has_errors_of_its_own() -> None:
    for package in ("biencoder", "launcher"):
        for file in (PROJECT_ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and file.name != "errors.py":
                    bases = [ast.unparse(base) for base in node.bases]
                    assert not any(base.endswith(("Error", "Exception")) for base in bases), f"{file}: {node.name}"
