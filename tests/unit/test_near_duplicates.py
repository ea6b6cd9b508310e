"""Which texts count as nearly the same, and which queries that makes leaks."""

from pathlib import Path

import numpy as np
import pytest

from biencoder.data import Dataset, load_dataset
from biencoder.data import near_duplicates as module
from biencoder.data.near_duplicates import near_duplicates
from biencoder.errors import DataError
from biencoder.evaluation.leaks import debate_groups, leak_free
from tests.conftest import WriteCorpus


def words(start: int, count: int = 40) -> str:
    """A text of its own for every start a hundred apart; neighbouring starts share most of it."""
    return " ".join(f"word{number}" for number in range(start, start + count))


def test_edited_texts_are_nearly_the_same_and_others_are_not() -> None:
    texts = [
        words(0),
        words(500),
        words(0).replace("word20", "another").replace("word30", "another"),  # 32 of 44 triples
        words(900),
        words(0, 52),  # longer by a third
        words(500).upper().replace(" ", ", "),
        words(24),  # 26 of the 62 triples of the longer one
    ]
    assert near_duplicates(texts).tolist() == [0, 1, 0, 3, 0, 1, 6]


def test_half_of_the_triples_is_the_line() -> None:
    # 38 triples each; moved by 12 words they share 26 of 50, by 13 words 25 of 51, though hashing brings both together.
    assert near_duplicates([words(0), words(12)]).tolist() == [0, 0]
    assert near_duplicates([words(0), words(13)]).tolist() == [0, 1]


def test_a_chain_is_one_group_in_any_order() -> None:
    chain = [words(start) for start in (0, 10, 20, 30)]  # the ends share nothing that counts
    assert near_duplicates([chain[0], chain[3]]).tolist() == [0, 1]
    for order in ([0, 1, 2, 3], [3, 0, 2, 1], [0, 3, 1, 2], [1, 3, 2, 0]):
        assert near_duplicates(["first of all", *(chain[place] for place in order)]).tolist() == [0, 1, 1, 1, 1]


def test_short_and_empty_looking_texts_are_compared_whole() -> None:
    assert near_duplicates(["no", "No.", "no way", "yes", "?!", "..."]).tolist() == [0, 0, 2, 3, 4, 5]


def test_one_common_sentence_joins_nothing() -> None:
    shared = words(0, 12)
    texts = [f"{words(100 * number)} {shared}" for number in range(1, 60)]
    assert near_duplicates(texts).tolist() == list(range(59))


def test_two_texts_are_compared_once_and_copies_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    are_near = module._are_near

    def counted(one: str, other: str) -> bool:
        compared.append((one, other))
        return are_near(one, other)

    monkeypatch.setattr(module, "_are_near", counted)
    copies = [text + "!" * count for text in (words(0), words(16)) for count in range(50)]  # 22 of 54 triples shared
    assert near_duplicates(copies).tolist() == [0] * 50 + [50] * 50
    assert len(compared) <= 1
    compared.clear()
    shared = words(0, 25)
    assert near_duplicates([f"{shared} {words(100 * number, 15)}" for number in range(1, 41)]).tolist() == list(range(40))
    assert len(compared) > 100, "these agree in a band"
    assert len(compared) == len(set(compared))


def test_groups_of_a_large_corpus_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_KEPT_FROM", 3)
    texts = [words(0), words(500), words(5)]
    assert near_duplicates(texts).tolist() == [0, 1, 0]
    (file,) = tmp_path.rglob("*.npy")
    find = module._find
    monkeypatch.setattr(module, "_find", lambda texts: pytest.fail("found again"))
    assert near_duplicates(texts).tolist() == [0, 1, 0]
    with pytest.raises(pytest.fail.Exception, match="found again"):
        near_duplicates([*texts[:2], words(6)])  # another corpus
    monkeypatch.setattr(module, "_find", find)
    for content in (b"", file.read_bytes()[:-1], b"no array"):
        file.write_bytes(content)
        assert near_duplicates(texts).tolist() == [0, 1, 0]
        assert np.load(file).tolist() == [0, 1, 0]
    assert near_duplicates(texts[:2]).tolist() == [0, 1]
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def debates(**texts: tuple[str, str]) -> dict[tuple[str, str, str, str, int, str], str]:
    """{split_debate_number: (point, counter)} for `write_corpus`."""
    return {
        (split, "theme", debate, "pro", int(number), kind): text
        for key, pair in texts.items()
        for split, debate, number in [key.split("_")]
        for kind, text in zip(("point", "counter"), pair, strict=True)
    }


def load(write_corpus: WriteCorpus, **texts: tuple[str, str]) -> Dataset:
    return load_dataset(str(write_corpus(debates(**texts))), clean=True, needs_training=False)


def test_leak_free_drops_every_query_of_a_debate_that_training_has_seen(write_corpus: WriteCorpus) -> None:
    dataset = load(
        write_corpus,
        training_seen_1=(words(0), words(100)),
        training_seen_2=(words(200), words(300)),
        training_other_1=(words(400), words(500)),
        validation_same_1=(words(1000), words(300)),  # a text of training
        validation_same_2=(words(1100), words(1200)),  # of the same debate, though both texts are new
        validation_edited_1=(words(2000), words(405)),  # nearly a text of training
        validation_linked_1=(words(2005), words(2100)),  # nearly a text of the debate above
        validation_new_1=(words(3000), words(3100)),
        validation_new_2=(words(3005), words(3200)),  # nearly the same, but among themselves
        test_held_1=(words(3300), words(3400)),
    )
    split = dataset.splits["validation"]
    left = leak_free(dataset, split)
    assert [p.point.topic for p, kept in zip(split.pairs, left.kept_P, strict=True) if kept] == ["new", "new"]
    assert (left.num_leaked_debates, left.num_debates) == (3, 4)
    assert (left.num_near_duplicates, left.num_texts) == (6, 19)
    assert leak_free(dataset, dataset.splits["test"]).kept_P.tolist() == [True]


def test_debates_that_share_a_text_are_resampled_as_one(write_corpus: WriteCorpus) -> None:
    dataset = load(
        write_corpus,
        validation_a_1=(words(0), words(100)),
        validation_b_1=(words(200), words(300)),
        validation_c_1=(words(400), words(100)),
        validation_d_1=(words(205), words(500)),
    )
    identical = np.arange(len(dataset.texts))
    (group_P,) = debate_groups([dataset.splits["validation"]], identical)
    assert (group_P[:, None] == group_P).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]
    (near_P,) = debate_groups([dataset.splits["validation"]], near_duplicates(dataset.texts))
    assert near_P[1] == near_P[3] != near_P[0]


def test_a_table_without_topics_has_a_debate_for_each_pair(tmp_path: Path) -> None:
    (tmp_path / "validation.csv").write_text("point,counter\none,two\nthree,four\nfive,two\n")
    dataset = load_dataset(str(tmp_path), clean=True, needs_training=False)
    (group_P,) = debate_groups([dataset.splits["validation"]], np.arange(len(dataset.texts)))
    assert group_P[0] == group_P[2] != group_P[1]


@pytest.mark.parametrize("case", ["no training", "training itself", "nothing left"])
def test_leak_free_says_what_it_lacks(write_corpus: WriteCorpus, case: str) -> None:
    training = {} if case == "no training" else {"training_a_1": (words(0), words(100))}
    dataset = load(write_corpus, **training, validation_b_1=(words(5), words(200)))
    split = dataset.splits["training" if case == "training itself" else "validation"]
    with pytest.raises(DataError) as error:
        leak_free(dataset, split)
    assert ("leaves none of the 1 queries" if case == "nothing left" else "must hold it") in str(error.value)
