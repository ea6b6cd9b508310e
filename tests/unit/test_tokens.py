"""Padding, the cache of token ids, and batches made ahead."""

import errno
import fcntl
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from biencoder.config.schema import ModelConfig
from biencoder.data import token_cache, tokens
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
        """A process on another machine starts, finishes and goes on to train while this one still works."""
        yield from real(*args, **options)
        monkeypatch.setattr(token_cache, "token_chunks", real)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
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
        """A process on another machine mends the damaged one after this one has looked at it."""
        if path == entry and not inodes:
            inodes.append(0)
            monkeypatch.setattr(socket, "gethostname", lambda: "another")
            tokens_of(tiny_bert)
            inodes[0] = (entry / "flat.int32").stat().st_ino
        return real(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    tokens_of(tiny_bert)
    assert [(entry / "flat.int32").stat().st_ino] == inodes
    assert list(cache.iterdir()) == [entry]


def test_a_process_goes_on_where_one_that_was_killed_has_stopped(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tokens, token_cache):
        monkeypatch.setattr(module, "CHUNK_TEXTS", 2)
    texts = [f"{number} apples" for number in range(7)]
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(cache.parent / "other"))
        whole = tokens_of(tiny_bert, texts)
    real = cast(Any, token_cache).token_chunks

    def killed(*args: Any, **options: Any) -> Iterator[Any]:
        chunks = real(*args, **options)
        yield next(chunks)
        yield next(chunks)
        raise KeyboardInterrupt

    monkeypatch.setattr(token_cache, "token_chunks", killed)
    with pytest.raises(KeyboardInterrupt):
        tokens_of(tiny_bert, texts)
    (unfinished,) = cache.iterdir()
    with (unfinished / "flat.int32").open("ab") as file:
        file.write(b"half of a chunk, whose lengths were not written")
    begun_at = []

    def watched(*args: Any, first: int, **options: Any) -> Iterator[Any]:
        begun_at.append(first)
        return cast(Iterator[Any], real(*args, first=first, **options))

    monkeypatch.setattr(token_cache, "token_chunks", watched)
    found = tokens_of(tiny_bert, texts)
    assert begun_at == [4]
    assert isinstance(found.flat_T, np.memmap)
    np.testing.assert_array_equal(found.flat_T, whole.flat_T)
    np.testing.assert_array_equal(found.offsets_N1, whole.offsets_N1)
    (entry,) = cache.iterdir()
    assert {file.name for file in entry.iterdir()} == {"flat.int32", "offsets.npy"}


@pytest.mark.parametrize("length", [0, 5])
def test_lengths_without_their_tokens_are_not_believed(tiny_bert: Path, cache: Path, length: int) -> None:
    """As a machine may leave them that lost its power."""
    texts = [f"{number} apples" for number in range(tokens.CHUNK_TEXTS + 1)]
    expected = tokens_of(tiny_bert, texts)
    (entry,) = cache.iterdir()
    unfinished = entry.rename(entry.with_name(f"{entry.name}.{socket.gethostname()}.unfinished"))
    (unfinished / "flat.int32").write_bytes(b"1234")
    np.full(tokens.CHUNK_TEXTS, length, np.int64).tofile(unfinished / "lengths.int64")
    found = tokens_of(tiny_bert, texts)
    np.testing.assert_array_equal(found.flat_T, expected.flat_T)
    np.testing.assert_array_equal(found.offsets_N1, expected.offsets_N1)


def test_without_locks_of_files_there_is_a_cache_as_well(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockless(_file: Any, _kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", lockless)
    assert isinstance(tokens_of(tiny_bert).flat_T, np.memmap)
    assert len(list(cache.iterdir())) == 1


def test_a_process_that_comes_while_an_entry_gets_its_name_leaves_it_whole(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, others = token_cache._move, []

    def then_another(*args: Any) -> None:
        real(*args)
        monkeypatch.setattr(token_cache, "_move", real)
        others.append(tokens_of(tiny_bert))

    monkeypatch.setattr(token_cache, "_move", then_another)
    own = tokens_of(tiny_bert)
    np.testing.assert_array_equal(own.flat_T, others[0].flat_T)
    (entry,) = cache.iterdir()
    assert {file.name for file in entry.iterdir()} == {"flat.int32", "offsets.npy"}


def test_a_process_killed_before_its_entry_has_its_name_loses_nothing(
    tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tokens, token_cache):
        monkeypatch.setattr(module, "CHUNK_TEXTS", 2)

    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(token_cache, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            tokens_of(tiny_bert)
    monkeypatch.setattr(token_cache, "token_chunks", lambda *args, first, **options: iter([]) if first == 4 else None)
    assert len(tokens_of(tiny_bert).offsets_N1) == 5  # four texts, in two chunks that are known


def test_what_another_machine_has_left_is_removed_after_a_day(tiny_bert: Path, cache: Path) -> None:
    tokens_of(tiny_bert)
    (entry,) = cache.iterdir()
    for host, age in (("gone", 90_000), ("at-work", 60)):
        left = entry.with_name(f"{entry.name}.{host}.unfinished")
        left.mkdir()
        (left / "flat.int32").touch()
        os.utime(left / "flat.int32", (time.time() - age,) * 2)
    shutil.rmtree(entry)
    tokens_of(tiny_bert)
    assert {path.name for path in cache.iterdir()} == {entry.name, f"{entry.name}.at-work.unfinished"}


def test_a_full_disk_leaves_nothing_behind(tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(tokens_of(tiny_bert).offsets_N1) > 1
    assert list(cache.iterdir()) == []


def test_processes_of_a_machine_make_an_entry_once(tiny_bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = cast(Any, token_cache).token_chunks, []
    begun = threading.Event()

    def slow(*args: Any, **options: Any) -> Iterator[Any]:
        calls.append(options["first"])
        begun.set()
        time.sleep(0.3)
        return cast(Iterator[Any], real(*args, **options))

    monkeypatch.setattr(token_cache, "token_chunks", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(tokens_of, tiny_bert)
        assert begun.wait(30)
        second = tokens_of(tiny_bert)
    assert calls == [0]
    np.testing.assert_array_equal(second.flat_T, first.result().flat_T)
