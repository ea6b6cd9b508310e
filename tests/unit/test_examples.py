"""The embedded corpus keeps its promises: themes, debates, lengths, splits by debate, no text twice."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from biencoder.config import PROJECT_ROOT, load_config
from biencoder.data import SPLITS, load_dataset

ROOT = PROJECT_ROOT / "examples" / "debates"


def test_the_embedded_corpus() -> None:
    dataset = load_dataset(str(ROOT), clean=True)
    assert not dataset.findings.counts
    pairs = [(split, pair) for split in SPLITS for pair in dataset.splits[split].pairs]
    debates = Counter((split, pair.point.domain, pair.point.topic) for split, pair in pairs)
    assert len(debates) >= 24
    assert len({theme for _, theme, _ in debates}) >= 6
    assert set(debates.values()) == {6}
    assert len({topic for _, _, topic in debates}) == len(debates)
    splits_of_theme = defaultdict(Counter)
    for split, theme, _ in debates:
        splits_of_theme[theme][split] += 1
    assert all(split_counts == {"training": 4, "validation": 1, "test": 1} for split_counts in splits_of_theme.values())
    for _, pair in pairs:
        for record in (pair.point, pair.counter):
            assert 40 <= len(record.text.split()) <= 90, record.source
            assert record.text.isascii(), record.source


def test_cleaning_changes_none_of_it() -> None:
    clean, raw = (load_dataset(str(ROOT), clean=flag) for flag in (True, False))
    assert clean.fingerprint == raw.fingerprint


def test_it_is_the_default() -> None:
    assert load_config().data.root == load_config(file=Path("configs/quickstart.toml")).data.root == "examples/debates"


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.toml")), ids=lambda file: file.stem)
def test_the_configurations_hold_together(file: Path) -> None:
    load_config(file=file).check(world_size=1)
