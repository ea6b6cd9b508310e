"""A sentence-transformers folder stands beside our own models, and is measured alike."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biencoder.data import load_dataset
from biencoder.errors import ModelError
from biencoder.evaluation.comparison import Comparison
from biencoder.evaluation.systems import model_system, zero_shot_systems
from biencoder.evaluation.tasks import TASKS
from biencoder.retrieval.embedders import load_models
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def without_our_files(model: Path, folder: Path) -> Path:
    """The same weights as anybody's sentence-transformers model."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("biencoder.json", "classifier.safetensors"))
    return folder


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"pooling": "cls", "sides": "heads"}], ids=str)
def test_the_same_weights_give_the_same_figures(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path, settings: dict[str, Any]
) -> None:
    export(tiny_bert, tmp_path / "ours", normalize=True, **settings)
    without_our_files(tmp_path / "ours", tmp_path / "theirs")
    dataset = load_dataset(str(write_corpus(numbered_corpus(training=30, validation=20))), clean=True)
    split, tasks = dataset.splits["validation"], [TASKS[name] for name in ("sda", "epa", "beir")]
    models = load_models([str(tmp_path / "ours"), str(tmp_path / "theirs")])
    assert [model.embedder.max_length for model in models] == [16, 16]
    assert models[1].embedder.classifier is None
    systems = [model_system(model, dataset.texts, np.arange(len(dataset.texts))) for model in models]
    found = Comparison.of(dataset, split, tasks, systems, top_k=10, kept_P=np.full(len(split), True))
    ours, reranked, theirs = found.rows
    assert [row.name for row in found.rows] == ["ours", "ours, re-ranked", "theirs"]
    assert theirs.figures == ours.figures != reranked.figures
    assert 0 < ours.figures["epa"]["accuracy@1"].value < 1


def test_its_order_is_that_of_the_cosine(tiny_bert: Path, tmp_path: Path) -> None:
    export(tiny_bert, tmp_path / "ours", pooling="mean")
    without_our_files(tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = load_models([str(tmp_path / name) for name in ("ours", "theirs")])
    texts, text_ids = ["the quick fox", "a lazy dog argues against votes", "taxes rise"], np.array([0, 2])
    plain = ours.embedder.embed_texts(texts, text_ids).candidate.embedding
    unit = theirs.embedder.embed_texts(texts, text_ids)
    assert unit.text_ids_N.tolist() == [0, 2]
    np.testing.assert_allclose(unit.candidate.embedding, plain / plain.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    assert unit.query is unit.candidate


def test_models_of_one_name_go_by_their_paths(tiny_bert: Path, tmp_path: Path) -> None:
    folders = [str(tmp_path / run / "best") for run in ("one", "two")]
    for folder in folders:
        export(tiny_bert, Path(folder))
    assert [model.name for model in load_models(folders)] == folders


def test_what_a_model_was_trained_from_is_a_row_once(tiny_bert: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(tiny_bert, tmp_path / name, pooling="mean")
    models = load_models([str(tmp_path / name) for name in ("one", "two")])
    (base,) = zero_shot_systems(None, models, ["the fox", "dogs"], np.arange(2))
    assert base.name == f"zero-shot {tiny_bert.name}, 16 tokens"
    (named,) = zero_shot_systems(str(tiny_bert), models, ["the fox", "dogs"], np.arange(2))
    assert named.name == base.name
    with pytest.raises(ModelError, match=r"^no zero-shot row: .*nowhere does not exist .*--zero-shot NAME"):
        zero_shot_systems(str(tmp_path / "nowhere"), models, [], np.arange(0))


@pytest.mark.parametrize("fault", ["no package", "broken", "neither"])
def test_what_is_wrong_with_a_folder_is_one_sentence(
    tiny_bert: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tiny_bert, tmp_path / "ours")
    folder = without_our_files(tmp_path / "ours", tmp_path / "theirs")
    if fault == "no package":
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    if fault == "broken":
        (folder / "model.safetensors").write_bytes(b"nothing")
    if fault == "neither":
        (folder / "modules.json").unlink()
    with pytest.raises(ModelError) as error:
        load_models([str(folder)])
    said = {
        "no package": "pip install sentence-transformers",
        "broken": "cut short or damaged",
        "neither": "biencoder.json",
    }
    assert said[fault] in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
