"""The structure of a checkout in numbers: files, lines, functions, and what imports what.

python benchmarks/structure.py [FOLDER]

A room is an entry of biencoder/ (a module or a folder) or launcher/; an arrow says that one room imports another. Arrows
that are part of a cycle run back up.
"""

import argparse
import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

LONG = 40
"""Lines of a long function."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args().folder
    files = sorted(file for package in ("biencoder", "launcher") for file in (root / package).rglob("*.py"))
    trees = {file.relative_to(root): ast.parse(file.read_text(encoding="utf-8")) for file in files}
    lengths = sorted(length for tree in trees.values() for length in function_lengths(tree))
    arrows = {arrow for path, tree in trees.items() for arrow in room_imports(path, tree)}
    back = {(room, other) for room, other in arrows if reaches(other, room, arrows)}
    entries = [path for path in (root / "biencoder").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    rows = {
        "files": len(files),
        "lines": sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),
        "entries in biencoder/": len([path for path in entries if path.name != "__init__.py"]),
        "import arrows between rooms": len(arrows),
        "arrows that run back up": len(back),
        "functions": len(lengths),
        "median function, lines": statistics.median(lengths),
        f"functions over {LONG} lines": sum(length > LONG for length in lengths),
        "longest function, lines": lengths[-1],
    }
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    table.add_column(root.name, justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,g}")
    Console().print(table)
    for room, other in sorted(back):
        print(f"  {room} → {other}")


def function_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield node.end_lineno - node.lineno + 1


def room_imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs (room, room that it imports)."""
    own = room_of(".".join(path.with_suffix("").parts))
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "biencoder":
            names = [f"biencoder.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("biencoder", "launcher") and own and room_of(name) not in ("", own):
                yield own, room_of(name)


def room_of(module: str) -> str:
    """`biencoder.data.tokens` → data; empty for the package itself, which only hands out names."""
    parts = module.split(".")
    if parts[0] == "launcher":
        return "launcher"
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def reaches(start: str, goal: str, arrows: set[tuple[str, str]]) -> bool:
    seen, waiting = set[str](), [start]
    while waiting:
        room = waiting.pop()
        if room == goal:
            return True
        if room not in seen:
            seen.add(room)
            waiting += [other for own, other in arrows if own == room]
    return False


if __name__ == "__main__":
    main()
