"""A sentence-transformers folder stands beside our own models, and is measured alike."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data import load_dataset
from biencoder.distributed.world import World
from biencoder.errors import ModelError
from biencoder.evaluation import evaluate_split
from biencoder.evaluation.comparison import Comparison
from biencoder.evaluation.systems import model_system, zero_shot_systems
from biencoder.evaluation.tasks import TASKS
from biencoder.retrieval.embedders import NamedModel, load_models
from biencoder.retrieval.trained_model import TrainedModel
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export
from tests.unit.test_beir import embed, judged_split

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


def test_metrics_are_those_of_sentence_transformers_evaluator() -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rng = np.random.default_rng(0)
    answers = [rng.choice(300, size, replace=False).tolist() for size in rng.integers(1, 13, 60)]
    query_P, passage_P = np.array([(query, passage) for query, given in enumerate(answers) for passage in given]).T
    split = judged_split(query_P.tolist(), passage_P.tolist(), num_passages=300)
    values_ND = rng.standard_normal((360, 8))
    for query, given in enumerate(answers):  # so that no metric is near 0
        values_ND[300 + query] += values_ND[given].mean(0) * len(given) ** 0.5
    embedded = embed(values_ND / np.linalg.norm(values_ND, axis=1, keepdims=True))

    class Model:
        """What the evaluator wants of one: vectors, here of names that are text ids."""

        def encode(self, names: list[str], **_: object) -> torch.Tensor:
            return embedded.query.embedding[torch.tensor([int(name) for name in names])]

        encode_query = encode_document = encode

    passages: dict[str, Any] = {str(passage): str(passage) for passage in range(300)}
    queries: dict[str, Any] = {str(query): str(300 + query) for query in range(60)}
    right = {str(query): set(map(str, given)) for query, given in enumerate(answers)}
    evaluator = InformationRetrievalEvaluator(
        queries,
        passages,
        right,
        precision_recall_at_k=[10, 100],
        score_functions={"dot": lambda left, right: left @ right.T},
    )
    model: Any = Model()
    theirs: Any = evaluator.compute_all_metrics(model)["dot"]
    ours = evaluate_split(split, embedded, None, top_k=10, world=World.alone()).metrics
    kinds = {"accuracy": (1, 5, 10), "recall": (10, 100), "mrr": (10,), "ndcg": (10,), "map": (100,)}
    for kind, depths in kinds.items():
        for k in depths:
            assert ours[f"embedding/{kind}@{k}"] == pytest.approx(theirs[f"{kind}@k"][k], abs=1e-6), (kind, k)
            assert 0.1 < theirs[f"{kind}@k"][k] <= 1


@pytest.mark.parametrize(
    ("pooling", "layers", "unit", "settings"),
    [
        ("mean", [(12, False, "Identity")], True, {"embedding_dim": 12}),
        ("cls", [(32, True, "Tanh")], True, {"embedding_dim": 0}),
        ("cls", [(32, True, "Tanh"), (12, False, "Identity"), (8, False, "Identity")], False, {"sides": "encoders"}),
    ],
    ids=["projection", "pooler", "both"],
)
def test_dense_layers_are_taken_over(
    tiny_bert: Path, tmp_path: Path, pooling: str, layers: list[tuple[int, bool, str]], unit: bool, settings: dict[str, Any]
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as kinds

    width, texts = 32, ["the quick fox", "a lazy dog argues against votes", "taxes rise"]
    torch.manual_seed(1)
    modules: list[Any] = [kinds.Transformer(str(tiny_bert)), kinds.Pooling(width, pooling_mode=pooling)]
    for height, bias, activation in layers:
        modules.append(kinds.Dense(width, height, bias=bias, activation_function=getattr(torch.nn, activation)()))
        width = height
    theirs = SentenceTransformer(modules=[*modules, *([kinds.Normalize()] if unit else [])], device="cpu")
    theirs.save(str(tmp_path / "theirs"), safe_serialization=pooling == "cls")
    config = ModelConfig(name=str(tmp_path / "theirs"), max_length=16, normalize=unit, **{"embedding_dim": 0, **settings})
    ours = TrainedModel.pretrained(config)
    assert ours.config.embedding_dim == width
    for side in ("query", "candidate"):
        found = ours.encode(texts, side=side)
        np.testing.assert_allclose(found, theirs.encode(texts), rtol=0, atol=1e-5)
    (measured,) = zero_shot_systems(None, [NamedModel("ours", "", ours)], texts, np.arange(3))
    ranking = measured.build().rank(np.arange(3), np.arange(3), np.full(3, -1), k=3)
    cosine = torch.nn.functional.normalize(torch.from_numpy(np.asarray(theirs.encode(texts))), dim=1)
    np.testing.assert_array_equal(ranking.candidate_Qk, torch.cdist(cosine, cosine).argsort(1).numpy())


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_model_of_ours_can_be_trained_further(tiny_bert: Path, tmp_path: Path, pooling: str) -> None:
    model = export(tiny_bert, tmp_path / "ours", pooling=pooling)
    further = TrainedModel.pretrained(ModelConfig(name=str(tmp_path / "ours"), max_length=16, embedding_dim=8))
    assert further.model.query_tower.pooling == pooling
    for name, weight in model.towers.state_dict().items():
        torch.testing.assert_close(further.model.towers.state_dict()[name], weight, rtol=0, atol=0)
