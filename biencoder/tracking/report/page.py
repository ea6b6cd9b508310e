"""Puts the page together: texts through a template that escapes them, figures as JSON, style and scripts inlined."""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import jinja2

from biencoder.errors import ConfigError
from biencoder.tracking.record import RunRecord
from biencoder.tracking.report import summary
from biencoder.tracking.report.figures import SECTIONS, figures


def write_report(records: Sequence[RunRecord], out: Path) -> None:
    """Write the page for one run, or for a comparison of several; the old page stays until the new one is written.

    Raises:
        ConfigError: the file cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page(records), encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None


def page(records: Sequence[RunRecord]) -> str:
    """The page as HTML, plotly.js included."""
    package = files(__package__)
    drawn = figures(records)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(package.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=records[0].name if len(records) == 1 else f"{len(records)} runs",
        record=records[0] if len(records) == 1 else None,
        records=records,
        summary=summary,
        sections=[(name, [(i, f) for i, f in enumerate(drawn) if f.section == name]) for name in SECTIONS],
        figures=script_json([asdict(figure) for figure in drawn]),
        style=package.joinpath("page.css").read_text(encoding="utf-8"),
        script=package.joinpath("page.js").read_text(encoding="utf-8"),
        plotly=files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8"),
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    )


def script_json(value: object) -> str:
    """JSON that may stand in a script element: no text in it can end the element or start a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
