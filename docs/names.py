"""Writes docs/reference/metrics.md and docs/reference/exit-codes.md, from biencoder/tracking and errors.py.

python docs/names.py
"""

import ast
import inspect
from itertools import pairwise
from pathlib import Path

from biencoder import errors
from biencoder.errors import ExitCode
from biencoder.tracking import names

FOLDER = Path(__file__).with_name("reference")
_KINDS = {
    "step": (names.STEP, "Training steps, every `train.log_every` steps."),
    "mine": (names.MINE, "Negatives, once an epoch."),
    "eval": (
        names.EVAL,
        "Retrieval, every `eval.every_epochs` epochs. `{split}` is training, validation or test; `{ranking}` is "
        "`embedding` or `rerank`.",
    ),
    "checkpoint": (names.CHECKPOINT, "Checkpoints, each time one is saved."),
}
_METRICS = """# Metrics

Made by `python docs/names.py` from `biencoder/tracking/names.py`. These names stand in `metrics.jsonl`, in Weights & Biases
and in the report. A heading is the `kind` of the record that holds them.
"""
_OTHER = f"""
## Tables, histograms and events

| name | kind | meaning |
|---|---|---|
| `{names.HARDNESS}` | histogram | distance to the counter less that to the negative; above 0 the negative is nearer |
| `{names.CLOSEST}` | table | samples whose negative is nearest to a copy of their point or counter |
| `{names.examples("{split}")}` | table | example retrievals |
| {", ".join(f"`{name}`" for name in names.PROVENANCE)} | event | hashes: an epoch's negatives, what they were searched in |
"""
_CODES = """# Exit codes

Made by `python docs/names.py` from `biencoder/errors.py`. torchrun, deepspeed and Slurm turn these codes into codes of
their own.

| code | name | meaning |
|---|---|---|
"""
_CLASSES = """
## Errors of the library

A program that imports biencoder catches `BiencoderError`. Its text is one sentence that names the file, key or value, and
says what to do. The number is the exit code that a command makes of it.

"""


_DASHBOARD = """
## Dashboard

The workspace that `launcher/dashboard.py` makes in Weights & Biases.

| section | panel | shows |
|---|---|---|
"""


def dashboard() -> str:
    """Every panel of the workspace."""
    from biencoder.tracking.dashboard import SECTIONS, Curves  # takes seconds

    rows = []
    for section, panels in SECTIONS.items():
        for panel in panels:
            title, metrics = (panel.title, panel.metrics) if isinstance(panel, Curves) else ("a table", [panel.name])
            rows.append(f"| {section} | {title} | {', '.join(f'`{name}`' for name in metrics)} |")
    return _DASHBOARD + "\n".join(rows) + "\n"


def metrics_page() -> str:
    """Every metric, by the kind of its record."""
    texts = [_METRICS]
    for kind, (metrics, when) in _KINDS.items():
        rows = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in metrics.items())
        texts.append(f"\n## {kind}\n\n{when}\n\n| name | meaning |\n|---|---|\n{rows}\n")
    return "".join(texts) + _OTHER + dashboard()


def codes_page() -> str:
    """Every exit code, and the classes of errors that lead to it."""
    meanings = _docstrings_of_members(ExitCode)
    rows = "\n".join(f"| {code.value} | `{code.name}` | {meanings[code.name]} |" for code in ExitCode)
    tree = (errors.__doc__ or "").split("\n\n")[1]
    return f"{_CODES}{rows}\n{_CLASSES}```text\n{tree}\n```\n"


def _docstrings_of_members(enum: type) -> dict[str, str]:
    """Member → the text below its value."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(enum)).body if isinstance(node, ast.ClassDef))
    texts = {}
    for node, below in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            (name,) = node.targets
            texts[ast.unparse(name)] = str(below.value.value)
    return texts


PAGES = {FOLDER / "metrics.md": metrics_page, FOLDER / "exit-codes.md": codes_page}

if __name__ == "__main__":
    for file, page in PAGES.items():
        file.write_text(page(), encoding="utf-8")
