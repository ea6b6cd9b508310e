"""An index that was saved answers as one in memory does, and is refused when it is not what it says."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.data import load_texts
from biencoder.errors import DataError
from biencoder.model.bi_encoder import Vectors
from biencoder.model.folder import model_sha256
from biencoder.retrieval import saved_index as search_index
from biencoder.retrieval.faiss_index import FlatIndex
from biencoder.retrieval.saved_index import (
    Facts,
    IndexKind,
    SearchIndex,
    build_compact,
    check_texts,
    open_index,
    read_facts,
)
from biencoder.retrieval.trained_model import Hit, TrainedModel
from tests.models import export

WORDS = "fox dog taxes votes quick lazy brown argues point counter".split()
TEXTS = tuple(f"{a} against the {b}, größer" for a in WORDS for b in WORDS)
QUERIES = ["taxes rise", TEXTS[17], "a lazy   dog argues"]


def write(
    folder: Path, model_folder: Path, texts: Sequence[str] = TEXTS, kind: IndexKind = "flat", *, clean: bool = True
) -> Facts:
    model = TrainedModel.load(str(model_folder))
    return search_index.write_index(
        folder,
        texts,
        kind=kind,
        clean=clean,
        model=str(model_folder),
        model_sha256=model_sha256(model_folder),
        candidates=partial(model.embed_side, side="candidate"),
        queries=partial(model.embed_side, side="query"),
    )


def opened(folder: Path) -> tuple[TrainedModel, SearchIndex]:
    facts = read_facts(folder)
    return TrainedModel.load(facts.model), open_index(folder, facts, model_sha256=model_sha256(Path(facts.model)))


def assert_same(found: list[Hit], expected: list[Hit]) -> None:
    assert [hit.text for hit in found] == [hit.text for hit in expected]
    for name in ("distance", "probability"):
        values = [[getattr(hit, name) for hit in hits] for hits in (found, expected)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"sides": "heads", "classifier_features": "embedding"}, {"sides": "encoders", "normalize": True}],
    ids=str,
)
def test_a_saved_index_finds_what_one_in_memory_finds(
    tiny_bert: Path, tmp_path: Path, kind: IndexKind, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "_CHUNK_TEXTS", 32)  # the last chunk is not full
    export(tiny_bert, tmp_path / "model", pooling="mean", **settings)
    facts = write(tmp_path / "index", tmp_path / "model", kind=kind)
    assert facts.recall == 1.0
    assert ("pooled.npy" in facts.num_bytes) == ("classifier_features" not in settings)
    model, saved = opened(tmp_path / "index")
    in_memory = SearchIndex.in_memory(TEXTS, model.embed_side(TEXTS, "candidate"), clean=True)
    for query in QUERIES:
        for top_k in (1, 7, *([] if kind == "hnsw" else [len(TEXTS) + 5])):  # some texts no path of a graph may lead to
            for rerank in (False, True):
                found = model.search(query, saved, top_k=top_k, rerank=rerank)
                assert_same(found, model.search(query, in_memory, top_k=top_k, rerank=rerank))
        assert len(found) == (7 if kind == "hnsw" else len(TEXTS) - (query in TEXTS))


def test_reranking_orders_the_nearest_by_probability(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model")
    model = TrainedModel.load(str(tmp_path / "model"))
    index = SearchIndex.in_memory(TEXTS, model.embed_side(TEXTS, "candidate"), clean=True)
    nearest, reranked = (model.search("taxes", index, top_k=8, rerank=rerank) for rerank in (False, True))
    assert sorted(reranked) == sorted(nearest)
    assert [hit.distance for hit in nearest] == sorted(hit.distance for hit in nearest)
    assert [hit.probability for hit in reranked] == sorted((hit.probability for hit in nearest), reverse=True)
    assert nearest != reranked


def test_without_a_classifier_nothing_is_called_probable(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model")
    (tmp_path / "model/classifier.safetensors").unlink()
    facts = write(tmp_path / "index", tmp_path / "model")
    assert "pooled.npy" not in facts.num_bytes
    model, index = opened(tmp_path / "index")
    assert model.classifier is None
    assert all(np.isnan(hit.probability) for hit in model.search("taxes", index, top_k=3))


@pytest.mark.parametrize("clean", [True, False])
def test_a_query_is_cleaned_as_the_texts_were(tiny_bert: Path, tmp_path: Path, clean: bool) -> None:
    raw = "Fox &amp; dog  rise.[1]\n\n[1] A. Author, 2009"
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in (raw, *TEXTS)))
    texts, _ = load_texts(str(corpus), clean=clean)
    assert (raw == texts[0], "&amp;" in texts[0]) == (False, not clean)
    export(tiny_bert, tmp_path / "model")
    write(tmp_path / "index", tmp_path / "model", texts, clean=clean)
    model, saved = opened(tmp_path / "index")
    in_memory = SearchIndex.in_memory(texts, model.embed_side(texts, "candidate"), clean=clean)
    for index in (saved, in_memory):
        found = model.search(raw, index, top_k=len(texts))
        assert_same(found, model.search(texts[0], index, top_k=len(texts)))
        assert texts[0] not in [hit.text for hit in found]  # the query's own text is no answer to it
        assert len(found) == len(TEXTS)
        for empty in (" \n", *(["[1] "] if clean else [])):
            with pytest.raises(DataError, match="there is no text in the query"):
                model.search(empty, index, top_k=1)


def test_an_index_that_does_not_tell_how_its_texts_were_taken_is_made_again(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model")
    write(tmp_path / "index", tmp_path / "model")
    facts = json.loads((tmp_path / "index/index.json").read_text())
    del facts["clean"]
    (tmp_path / "index/index.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"is damaged: .* clean .*; make it again with .*python launcher/index.py"):
        read_facts(tmp_path / "index")


def test_an_index_of_another_model_or_of_other_texts_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "index"
    export(tiny_bert, model)
    facts = write(folder, model)
    (model / "README.md").write_text("another card")
    opened(folder)
    export(tiny_bert, model, pooling="mean")
    with pytest.raises(DataError, match="was made by a model with other weights") as error:
        opened(folder)
    assert str(folder) in str(error.value)
    check_texts(folder, facts, TEXTS)
    with pytest.raises(DataError, match=r"is of other texts \(100\) than data.root holds now \(99\)"):
        check_texts(folder, facts, TEXTS[1:])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no folder", "is no index: it has no index.json"),
        ("facts", "is damaged: 1 validation error"),
        ("half", "is damaged: embedding.npy has not the"),
        ("gone", "is damaged: texts.utf8: No such file"),
        ("overwritten", "is damaged: Error in"),
        ("swapped", "is damaged: index.faiss holds 40 vectors of 8 dimensions"),
    ],
)
def test_a_damaged_index_gets_one_sentence(tiny_bert: Path, tmp_path: Path, damage: str, sentence: str) -> None:
    folder = tmp_path / "index"
    export(tiny_bert, tmp_path / "model")
    write(folder, tmp_path / "model", kind="ivf")
    match damage:
        case "no folder":
            shutil.rmtree(folder)
        case "facts":
            (folder / "index.json").write_text("{")
        case "half":
            half = (folder / "embedding.npy").read_bytes()[:1000]
            (folder / "embedding.npy").write_bytes(half)
        case "gone":
            (folder / "texts.utf8").unlink()
        case "overwritten":
            (folder / "index.faiss").write_bytes(bytes((folder / "index.faiss").stat().st_size))
        case "swapped":
            write(tmp_path / "other", tmp_path / "model", TEXTS[:40], "ivf")
            shutil.copy(tmp_path / "other/index.faiss", folder / "index.faiss")
            facts = json.loads((folder / "index.json").read_text())
            facts["num_bytes"]["index.faiss"] = (folder / "index.faiss").stat().st_size
            (folder / "index.json").write_text(json.dumps(facts))
    with pytest.raises(DataError) as error:
        opened(folder)
    assert sentence in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_writing_fails_whole_and_leaves_what_was_there(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "model")
    write(tmp_path / "index", tmp_path / "model")
    before = (tmp_path / "index/index.json").read_bytes()

    def full(_: object) -> Vectors:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be written to .*: No space left on device"):
        search_index.write_index(
            tmp_path / "index", TEXTS, kind="flat", clean=True, model="", model_sha256="", candidates=full, queries=full
        )
    assert (tmp_path / "index/index.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"index", "model"}


class EveryOther:
    """Misses half of the vectors."""

    exact = False

    def __init__(self, vectors_ND: npt.NDArray[np.float32]) -> None:
        self._vectors_ND = vectors_ND

    def search(self, queries_QD: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
        even_QN = np.linalg.norm(queries_QD[:, None] - self._vectors_ND[::2], axis=-1)
        return 2 * np.argsort(even_QN, axis=1)[:, :k]


def test_recall_counts_what_a_search_misses() -> None:
    line_N1 = np.arange(100, dtype=np.float32)[:, None]
    queries_Q1 = np.array([[0.1], [50.1]], dtype=np.float32)
    assert search_index.measured_recall(EveryOther(line_N1), line_N1, queries_Q1) == 0.5
    assert search_index.measured_recall(FlatIndex(line_N1), line_N1, queries_Q1) == 1.0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_compact_indexes_find_nearly_everything_in_clusters(kind: IndexKind) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 32, generator=generator)
    vectors_ND = (centres.repeat(30, 1) + 0.7 * torch.randn(3000, 32, generator=generator)).numpy()
    index = search_index.CompactIndex(build_compact(vectors_ND, kind))
    assert search_index.measured_recall(index, vectors_ND, vectors_ND[:100] + np.float32(0.01)) > 0.97
