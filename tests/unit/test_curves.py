"""The picture of accuracy over time shows what was measured."""

import json
from pathlib import Path

import pytest

from biencoder.config.paths import PROJECT_ROOT

pytest.importorskip("matplotlib")
from docs.curves import NAMES, draw


def test_it_shows_each_run_by_name_with_its_last_figure(tmp_path: Path) -> None:
    for place, what in enumerate(NAMES):
        points = [{"step": 1, "seconds": 60, "strict": 0.1}, {"step": 2, "seconds": 120, "strict": 0.25 + place / 100}]
        (tmp_path / f"{what}.json").write_text(json.dumps({"points": points}))
    draw(tmp_path, tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    for place, (name, *_) in enumerate(NAMES.values()):
        assert name in picture
        assert f">{25 + place:.1f}<" in picture


def test_the_committed_picture_is_of_the_committed_figures() -> None:
    assets = PROJECT_ROOT / "docs" / "assets"
    picture = (assets / "curves.svg").read_text()
    for what in NAMES:
        last = json.loads((assets / "curves" / f"{what}.json").read_text())["points"][-1]
        assert f">{100 * last['strict']:.1f}<" in picture
