"""The model card says what was trained, what was measured and nothing else, in a form that the hub reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from huggingface_hub import ModelCard

from biencoder.config.schema import Config, DataConfig, EvalConfig, LossConfig, MiningConfig, ModelConfig, TrainConfig
from biencoder.data import Dataset, Split
from biencoder.data.given import Given
from biencoder.data.records import Findings
from biencoder.data.texts import Pile
from biencoder.training.model_card import model_card

METRICS = {
    "embedding/accuracy@1": 0.25,
    "embedding/accuracy@1_text": 0.5,
    "embedding/mrr@10": 0.375,
    "embedding/ndcg@10": 0.4375,
}
CONTRASTIVE = LossConfig(triplet_weight=0, classification_weight=0, contrastive_weight=1, temperature=0.1)


def dataset_of(**num_pairs: int) -> Dataset:
    splits = {
        name: Split(name, (None,) * size, np.arange(size), np.arange(size))  # type: ignore[arg-type]
        for name, size in num_pairs.items()
    }
    return Dataset(Pile().distinct()[0], splits, Findings(), "f" * 64)


def card_of(
    dataset: Dataset | None = None, *, reranked: float | None = None, more: dict[str, float] | None = None, **sections: Any
) -> str:
    dataset = dataset or dataset_of(training=80, validation=40, test=20)
    metrics = {f"eval/{split}/{name}": value for split in dataset.splits for name, value in METRICS.items()}
    metrics |= more or {}
    metrics |= {f"eval/{name}/queries": len(split) for name, split in dataset.splits.items()}
    if reranked is not None:
        metrics |= {f"eval/{split}/rerank/accuracy@1": reranked for split in dataset.splits}
    config = replace(Config(data=DataConfig(root="/home/me/debates")), **sections)
    return model_card(config, dataset, metrics, step=25)


def test_the_hub_reads_results_of_the_splits_not_trained_on() -> None:
    data: Any = ModelCard(card_of(reranked=0.125)).data
    found = {(r.dataset_name, r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results or []}
    expected = {
        "accuracy@1": 0.25,
        "accuracy@1_text": 0.5,
        "mrr@10": 0.375,
        "ndcg@10": 0.4375,
        "accuracy@1_reranked": 0.125,
    }
    assert found == {
        ("debates", split, kind): value for split in ("validation", "test") for kind, value in expected.items()
    }
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")


@pytest.mark.parametrize(
    ("name", "base"),
    [("minilm", "sentence-transformers/all-MiniLM-L6-v2"), ("google/bert", "google/bert"), ("/home/me/bert", None)],
)
def test_only_what_is_on_the_hub_is_named_as_its_base(name: str, base: str | None) -> None:
    card = card_of(model=ModelConfig(name=name))
    assert cast(Any, ModelCard(card).data).base_model == base
    assert "/home/me" not in card


def test_the_data_and_its_licence_are_named_where_they_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(root: str) -> str:
        return next(line for line in card_of(data=DataConfig(root=root)).splitlines() if line.startswith("| data |"))

    assert row(str(tmp_path)).startswith(f"| data | `{tmp_path.name}`; fingerprint `fff")
    (tmp_path / "LICENSE").write_text("\n# MIT | Licence\n\nPermission is granted")
    assert f"`{tmp_path.name}`, licence: MIT / Licence; fingerprint" in row(str(tmp_path))
    (tmp_path / "README.md").write_text("# Texts\n\n## License\n\nCC BY 4.0\nby us")
    assert ", licence: CC BY 4.0; fingerprint" in row(str(tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: [cc0-1.0, mit]\n---\n## Licence\nnone")
    assert ", licence: cc0-1.0, mit; fingerprint" in row(str(tmp_path))
    (tmp_path / "README.md").write_bytes(b"---\nlicense: [\n---\n\xff")
    assert "MIT / Licence" in row(str(tmp_path))
    assert "under CC0 1.0" in row("examples/handbook")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert row("hf:owner/name:part").startswith("| data | `owner/name`; fingerprint")
    cached = tmp_path / "datasets--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\n")
    assert row("hf:owner/name:part").startswith("| data | `owner/name`, licence: ours; fingerprint")
    data: Any = ModelCard(card_of(data=DataConfig(root="hf:owner/name"))).data
    assert (data.datasets, data.eval_results[0].dataset_type) == (["owner/name"], "owner/name")


def test_shorter_embeddings_have_their_columns() -> None:
    loss = LossConfig(matryoshka_dims="64,32,128")
    metrics: dict[str, float] = {}
    for split in ("training", "validation", "test"):
        metrics |= {f"eval/{split}/dim{n}/accuracy@1": 0.125 for n in (64, 32)}
    card = card_of(loss=loss, model=ModelConfig(normalize=True), more=metrics)
    assert "| accuracy@1, 64 dimensions | accuracy@1, 32 dimensions |" in card
    assert "summed over all dimensions and the first 64, 32; Euclidean" in card
    assert "give `truncate_dim=32` to `SentenceTransformer`, and `normalize_embeddings=True`" in card
    results = {result.metric_type for result in cast(Any, ModelCard(card).data).eval_results}
    assert {"accuracy@1_dim64", "accuracy@1_dim32"} <= results
    assert "truncate_dim" not in card_of()


def test_every_split_has_a_row_and_only_a_trained_classifier_a_column() -> None:
    assert "| validation | 40 | 25.00 % | 50.00 % | 0.375 | 0.438 |" in card_of(loss=CONTRASTIVE)
    assert "| test | 20 | 25.00 % | 50.00 % | 0.375 | 0.438 | 12.50 % |" in card_of(reranked=0.125)
    assert "accuracy@1, re-ranked" in card_of(reranked=0.125)
    assert "re-ranked" not in card_of(loss=CONTRASTIVE).lower()
    assert "No pair classifier was trained." in card_of(loss=CONTRASTIVE)
    assert "classifier.safetensors" in card_of(reranked=0.125)


def test_the_objective_is_what_had_weight() -> None:
    both = card_of(loss=LossConfig(margin=0.5, triplet_weight=2, classification_weight=0.1))
    assert "| objective | 2 × triplet loss with margin 0.5 + 0.1 × cross-entropy of a pair classifier; Euclidean" in both
    assert "contrastive" not in both
    ranking = card_of(loss=LossConfig(triplet_weight=0, classification="ranking"))
    assert "| objective | 1 × cross-entropy of a pair classifier, of the counter among its negatives; Eucl" in ranking
    alone = card_of(loss=CONTRASTIVE, mining=MiningConfig(negatives=0))
    assert "| objective | 1 × in-batch contrastive loss (InfoNCE, temperature 0.1, from point to counter); Eucl" in alone
    assert "| negatives | the other texts of the batch; none were mined |" in alone
    assert "triplet" not in alone
    assert "before every epoch" not in alone


def test_negatives_batch_and_learning_rate() -> None:
    card = card_of(
        mining=MiningConfig(negatives=3, random_rate=0.6, range_min=2, range_max=20, relative_margin=0.05),
        train=TrainConfig(global_batch_size=16, lr=2e-5, warmup_ratio=0.1, schedule="linear", batches="debates"),
    )
    assert (
        "| negatives | 3 for each pair, mined again before every epoch: 60 % at random in the first epoch and 2 points "
        "fewer in each later one, the others the nearest texts, drawn from ranks 3 to 20, farther than the counter by 5 % |"
    ) in card
    assert "| batch | 16 pairs, as far as possible whole debates |" in card
    assert "| length | 25 steps, 5 epochs of 80 pairs |" in card
    assert (
        "| learning rate | 4e-05, reached after 10 % of the steps, then falling linearly to 0 |" in card
    )  # twice that for 8


def test_what_chose_the_best_model_is_said() -> None:
    assert "`best` has the highest accuracy@1, on validation" in card_of()
    card = card_of(eval=EvalConfig(metric="embedding/accuracy@1_text"), mining=MiningConfig(focus="debates"))
    assert "`best` has the highest accuracy@1, copies as one, on validation" in card
    assert "the nearest texts of the same debate |" in card


def test_sides_of_their_own_are_encoded_as_such() -> None:
    assert "model.encode([" in card_of()
    for sides in ("heads", "encoders"):
        card = card_of(model=ModelConfig(sides=sides))
        assert "model.encode_query([" in card
        assert "model.encode_document([" in card
        assert "model.encode([" not in card


def test_without_validation_the_card_claims_nothing_about_new_texts() -> None:
    card = card_of(dataset_of(training=80))
    assert cast(Any, ModelCard(card).data).eval_results is None
    assert "nothing tells how it does on new texts" in card
    assert "on validation" not in card


def test_given_negatives_are_told() -> None:
    dataset = dataset_of(training=80)
    given = Given.of([np.arange(pair % 3) for pair in range(80)])
    dataset.splits["training"] = replace(dataset.splits["training"], given=given)
    first, only = (
        card_of(dataset, mining=MiningConfig(given=how), loss=LossConfig(contrastive_weight=1)) for how in ("first", "only")
    )
    assert (
        "; and those given with the data, which 53 of 80 pairs have, in place of the first of them; and the other" in first
    )
    assert "1 for each pair, given with the data; none were mined; and the other texts of the batch" in only
