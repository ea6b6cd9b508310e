"""Padding, the cache of token ids, and batches made ahead."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from biencoder.config.schema import ModelConfig
from biencoder.data import token_cache
from biencoder.data.prefetch import prefetched
from biencoder.data.token_cache import cache_folder, cached_tokens
from biencoder.data.tokens import TokenizedTexts
from biencoder.distributed.world import World
from biencoder.model.pretrained import load_pretrained

TEXTS = ["the quick fox", "a lazy dog argues against taxes", "votes", "brown dogs rise"]


def tokens_of(tiny_bert: Path, texts: list[str] = TEXTS, *, max_length: int = 16) -> TokenizedTexts:
    tokenizer = load_pretrained(ModelConfig(name=str(tiny_bert), max_length=16)).tokenizer
    return cached_tokens(texts, tokenizer, max_length=max_length, world=World.alone())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def test_a_batch_holds_its_texts_and_padding(tiny_bert: Path) -> None:
    tokenizer = load_pretrained(ModelConfig(name=str(tiny_bert), max_length=16)).tokenizer
    batch = tokens_of(tiny_bert).batch(np.array([1, 3]))
    assert batch.input_ids_UL.shape[1] % 8 == 0
    for row, text in enumerate((TEXTS[1], TEXTS[3])):
        wanted = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        assert batch.input_ids_UL[row, : len(wanted)].tolist() == wanted
        assert set(batch.input_ids_UL[row, len(wanted) :].tolist()) <= {tokenizer.pad_token_id}
        assert batch.attention_mask_UL[row].sum() == len(wanted)


def test_the_second_run_reads_what_the_first_has_made(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens_of(tiny_bert)
    monkeypatch.setattr(token_cache, "token_chunks", None)  # calling it would fail
    second = tokens_of(tiny_bert)
    assert isinstance(second.flat_T, np.memmap)
    np.testing.assert_array_equal(first.flat_T, second.flat_T)
    np.testing.assert_array_equal(first.offsets_N1, second.offsets_N1)
    assert first.pad_id == second.pad_id
    assert len(list(cache.iterdir())) == 1


def test_other_texts_or_another_cut_are_another_entry(tiny_bert: Path, cache: Path) -> None:
    tokens_of(tiny_bert)
    assert tokens_of(tiny_bert, max_length=4).lengths(np.arange(4)).max() == 4
    assert len(tokens_of(tiny_bert, [*TEXTS[:3], "brown dogs fall"]).offsets_N1) == 5
    assert tokens_of(tiny_bert, TEXTS[:3]).offsets_N1.shape == (4,)
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_entry_is_made_again(tiny_bert: Path, cache: Path) -> None:
    first = tokens_of(tiny_bert)
    (entry,) = cache.iterdir()
    whole = {file.name: file.read_bytes() for file in entry.iterdir()}
    assert whole.keys() == {"flat.int32", "offsets.npy"}
    for name, content in whole.items():
        for damage in (b"", content[:-4]):
            (entry / name).unlink()  # `first` has it mapped
            (entry / name).write_bytes(damage)
            np.testing.assert_array_equal(tokens_of(tiny_bert).flat_T, first.flat_T)
            assert {file.name: file.read_bytes() for file in entry.iterdir()} == whole


def test_a_cache_that_cannot_be_written_is_done_without(tiny_bert: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert len(tokens_of(tiny_bert).offsets_N1) == 5


def test_items_are_made_one_ahead_and_in_order() -> None:
    made, second_made = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                second_made.set()
            yield number

    ahead = prefetched(items())
    assert next(ahead) == 0
    assert second_made.wait(10), "the second item is not made while the caller works on the first"
    assert list(ahead) == [1, 2, 3]
    assert made == [0, 1, 2, 3]


def test_an_error_comes_in_its_items_place() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise KeyError("bad item")

    ahead = prefetched(items())
    assert next(ahead) == 0
    with pytest.raises(KeyError, match="bad item"):
        next(ahead)


def test_a_slower_starter_leaves_the_whole_cache_that_others_have_mapped(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[Any] = []
    real = cast(Any, token_cache).token_chunks

    def overtaken(*args: Any, **options: Any) -> Iterator[Any]:
        """Another process starts, finishes and goes on to train while this one still works."""
        yield from real(*args, **options)
        monkeypatch.setattr(token_cache, "token_chunks", real)
        (own,) = cache.iterdir()
        tokens_of(tiny_bert)
        (entry,) = {*cache.iterdir()} - {own}
        mapped.append((tokens_of(tiny_bert), (entry / "flat.int32").stat().st_ino, entry))

    monkeypatch.setattr(token_cache, "token_chunks", overtaken)
    slower = tokens_of(tiny_bert)
    (quicker, inode, entry) = mapped[0]
    assert isinstance(quicker.flat_T, np.memmap)
    assert (entry / "flat.int32").stat().st_ino == inode, "the mapped file was replaced"
    np.testing.assert_array_equal(slower.flat_T, quicker.flat_T)
    assert list(cache.iterdir()) == [entry]


def test_a_whole_cache_that_takes_the_place_of_a_damaged_one_meanwhile_stays(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens_of(tiny_bert)
    (entry,) = cache.iterdir()
    (entry / "flat.int32").write_bytes(b"")
    real, inodes = Path.rename, list[int]()

    def overtaken(path: Path, target: Path) -> Path:
        """Another process mends the damaged one after this one has looked at it."""
        if path == entry and not inodes:
            inodes.append(0)
            tokens_of(tiny_bert)
            inodes[0] = (entry / "flat.int32").stat().st_ino
        return real(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    tokens_of(tiny_bert)
    assert [(entry / "flat.int32").stat().st_ino] == inodes
    assert list(cache.iterdir()) == [entry]
