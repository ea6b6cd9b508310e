"""Texts in a block of bytes: in memory or in a file, each text once, and the same ones whatever befalls the file."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biencoder.data import load_dataset, load_texts, texts
from biencoder.data.texts import Pile, Sources, Texts, copies

READ = ["b", "", "ä", "a\n", "b", "日本", "", "a\x00", "a", "b"]
DISTINCT, NUMBERS = ["b", "", "ä", "a\n", "日本", "a\x00", "a"], [0, 1, 2, 3, 0, 4, 1, 5, 6, 0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "biencoder" / "texts"


def piled(read: list[str] = READ) -> Pile:
    pile = Pile()
    assert pile.add_all(read) == range(len(read))
    return pile


@pytest.mark.parametrize("in_memory", [0, 4, 2**20])
def test_each_text_is_there_once_in_the_order_of_its_first_place(
    cache: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(texts, "IN_MEMORY", in_memory)
    found, number_M = piled().distinct()
    assert list(found) == DISTINCT
    assert number_M.tolist() == NUMBERS
    assert [found[place] for place in (0, -1, np.int64(4))] == ["b", "a", "日本"]
    assert found[1:4] == DISTINCT[1:4]
    assert found.index("ä") == 2
    assert found == DISTINCT
    assert found != DISTINCT[:-1]
    assert is_mapped(found) == (in_memory < 2**20)
    assert not list(cache.iterdir()) if is_mapped(found) else not cache.exists()


def is_mapped(found: Texts) -> bool:
    return isinstance(found._block_T, np.memmap)


def test_places_in_another_order_give_the_numbers_of_that_order(cache: Path) -> None:
    found, number_O = piled().distinct(np.array([9, 8, 2, 4, 8]))
    assert list(found) == ["b", "a", "ä"]
    assert number_O.tolist() == [0, 1, 2, 0, 1]
    assert list(Pile().distinct()[0]) == []


def test_many_texts_are_numbered_as_a_dictionary_would(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "IN_MEMORY", 1000)
    read = [f"text {number}" for number in np.random.default_rng(0).integers(0, 2000, 5000).tolist()]
    found, number_M = piled(read).distinct()
    assert list(found) == list(dict.fromkeys(read))
    assert [found[number] for number in number_M] == read
    assert copies(number_M).tolist() == [place for place, text in enumerate(read) if text in read[:place]]


@pytest.mark.parametrize("room", [0, 1, 3])
def test_where_the_file_cannot_be_written_the_texts_stay_in_memory(
    cache: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A disk that takes two bytes at a time, and is full after so many writes."""
    monkeypatch.setattr(texts, "IN_MEMORY", 2)
    made: Any = texts._file_without_name

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.room = file, room

        def write(self, data: Any) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "no space left on device")
            self.room -= 1
            written: int = self.file.write(data[:2])
            return written

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(texts, "_file_without_name", lambda: Full(made()))
    found, number_M = piled().distinct()
    assert not is_mapped(found)
    assert list(found) == DISTINCT
    assert number_M.tolist() == NUMBERS


def test_where_the_cache_folder_cannot_be_made_the_texts_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(texts, "IN_MEMORY", 0)
    assert list(piled().distinct()[0]) == DISTINCT


def test_sources_are_told_by_place() -> None:
    sources, given = Sources(), ["a.jsonl:1", "a.jsonl:3", "hf:owner/name/train:1", "hf:owner/name/train:2", "a.jsonl:9"]
    for source in given:
        sources.add(source)
    assert [sources[place] for place in range(len(given))] == given


@pytest.mark.parametrize("root", ["examples/debates", "examples/handbook"])
def test_a_corpus_in_a_file_is_the_corpus_in_memory(cache: Path, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    """One with a further corpus as well."""
    for corpus in ("", "examples/handbook/corpus.jsonl"):
        kept = load_dataset(root, clean=True, corpus=corpus)
        found = load_texts(root, clean=True, corpus=corpus)[0]
        with monkeypatch.context() as patch:
            patch.setattr(texts, "IN_MEMORY", 5000)
            mapped = load_dataset(root, clean=True, corpus=corpus)
            assert load_texts(root, clean=True, corpus=corpus)[0] == found
        assert is_mapped(mapped.texts)
        assert not is_mapped(kept.texts)
        assert mapped.texts == kept.texts
        assert mapped.fingerprint == kept.fingerprint
        assert mapped.findings == kept.findings
    assert not os.listdir(cache)
