"""Model and loss: shapes and features of the paper, pooling, both sides, and the loss against PyTorch's own."""

import itertools
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from biencoder.config.schema import LossConfig, ModelConfig, TrainConfig
from biencoder.data import Split
from biencoder.data.tokens import TokenizedTexts, Tokens, tokenize
from biencoder.errors import ModelError
from biencoder.model.batch import length_groups, triplet_batch
from biencoder.model.bi_encoder import BiEncoder, PairClassifier, Scores, Vectors, build_model
from biencoder.model.pretrained import load_pretrained
from biencoder.training.engine.optim import build_optimizer, lr_factors, schedule
from biencoder.training.loss import combined_loss

TEXTS = ["the quick fox", "a lazy dog argues", "taxes rise", "votes fall with taxes and dogs", "brown"]


def make(tiny_bert: Path, **settings: Any) -> tuple[BiEncoder, TokenizedTexts]:
    config = ModelConfig(name=str(tiny_bert), max_length=32, **{"embedding_dim": 8, **settings})
    pretrained = load_pretrained(config)
    return build_model(config, pretrained, seed=0).eval(), tokenize(TEXTS, pretrained.tokenizer, max_length=32)


def scores_of(B: int = 4, D: int = 6, *, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    point, counter, negative = (torch.randn(B, D, generator=generator) for _ in range(3))
    positive_logits, negative_logits = (torch.randn(B, 2, generator=generator) for _ in range(2))
    return Scores(point, counter, negative[:, None], positive_logits, negative_logits[:, None], None)


def test_loss_is_the_sum_of_pytorchs_own_losses() -> None:
    scores = scores_of()
    parts = combined_loss(scores, LossConfig(margin=0.7, triplet_weight=2.0, classification_weight=0.5))
    triplet = F.triplet_margin_loss(scores.point_BD, scores.counter_BD, scores.negative_BKD[:, 0], margin=0.7)
    positive = F.cross_entropy(scores.counter_logits_B2, torch.ones(4, dtype=torch.long))
    negative = F.cross_entropy(scores.negative_logits_BK2[:, 0], torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(parts.triplet, triplet)
    torch.testing.assert_close(parts.ce_positive, positive)
    torch.testing.assert_close(parts.ce_negative, negative)
    torch.testing.assert_close(parts.total, 2.0 * triplet + 0.5 * (positive + negative))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_finite_when_all_vectors_are_equal(dtype: torch.dtype) -> None:
    vectors = [torch.full(shape, 200.0, dtype=dtype, requires_grad=True) for shape in ((3, 5), (3, 5), (3, 2, 5))]
    logits = torch.zeros(3, 2, dtype=dtype), torch.zeros(3, 2, 2, dtype=dtype)
    parts = combined_loss(Scores(*cast(Any, [*vectors, *logits, None])), LossConfig())
    parts.total.backward()
    assert all(torch.isfinite(part).all() and part.dtype == torch.float32 for part in parts)
    assert all(torch.isfinite(v.grad).all() for v in vectors if v.grad is not None)
    assert parts.triplet.item() == pytest.approx(1.0)
    assert parts.active_triplets.item() == 1.0


@pytest.mark.parametrize(("features", "width"), [("both", 3 * 8 + 3 * 32), ("embedding", 3 * 8), ("pooled", 3 * 32)])
@pytest.mark.parametrize("norm", [False, True])
def test_classifier_features(tiny_bert: Path, features: str, width: int, norm: bool) -> None:
    model, tokens = make(tiny_bert, classifier_features=features, classifier_norm=norm)
    assert model.classifier.layers[-1].in_features == width
    vectors = model(tokens.batch(np.arange(5))).query
    u, v = vectors.rows(torch.tensor([0, 1])), vectors.rows(torch.tensor([2, 3]))
    parts = {
        "embedding": [u.embedding, v.embedding, (u.embedding - v.embedding).abs()],
        "pooled": [u.pooled, v.pooled, (u.pooled - v.pooled).abs()],
    }
    wanted = torch.cat([t for name in ("embedding", "pooled") if features in (name, "both") for t in parts[name]], dim=1)
    torch.testing.assert_close(model.classifier(u, v), model.classifier.layers(wanted))


@pytest.mark.parametrize("features", ["both", "embedding", "pooled"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_residual_classifier_begins_at_the_order_of_the_embeddings(
    tiny_bert: Path, features: str, normalize: bool
) -> None:
    model, tokens = make(tiny_bert, classifier="residual", classifier_features=features, normalize=normalize)
    vectors = model(tokens.batch(np.arange(5))).query
    u = vectors.rows(torch.zeros(5, dtype=torch.long))
    logits = model.classifier(u, vectors)
    squared = (u.embedding - vectors.embedding).square().sum(1)
    torch.testing.assert_close(logits[:, 1], squared * (-10.0 if normalize else -0.5))
    assert logits[:, 0].count_nonzero() == 0


def test_the_residual_classifier_learns_what_no_distance_can_express() -> None:
    """Of two candidates at the same distance the one on the other side of an axis is the counter."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(64, 4, generator=generator)
    step = torch.randn(64, 4, generator=generator)
    step[:, 0] = u[:, 0].sign() * step[:, 0].abs()
    torch.manual_seed(0)
    classifier = PairClassifier(ModelConfig(classifier="residual"), embedding_dim=4, hidden=4)
    optimizer, config = torch.optim.Adam(classifier.parameters(), lr=1e-2), LossConfig(classification="ranking")
    losses = []
    for _ in range(60):
        counter, negative = (classifier(Vectors(u, u), Vectors(v, v)) for v in (u - step, u + step))
        parts = combined_loss(Scores(u, u - step, (u + step)[:, None], counter, negative[:, None], None), config)
        losses.append(parts.ce_positive.item())
        optimizer.zero_grad()
        parts.ce_positive.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < 0.2


@pytest.mark.parametrize("form", ["linear", "residual"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_classifiers_gradient_reaches_the_encoder_in_the_configured_share(
    tiny_bert: Path, form: str, share: float
) -> None:
    found = []
    for gradient in (1.0, share):
        model, tokens = make(tiny_bert, classifier=form, classifier_gradient=gradient)
        vectors = model(tokens.batch(np.arange(5))).query
        logits = model.classifier(vectors.rows(torch.tensor([0, 1])), vectors.rows(torch.tensor([2, 3])))
        F.cross_entropy(logits, torch.tensor([1, 0])).backward()
        found.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (whole_logits, whole), (logits, part) = found
    torch.testing.assert_close(logits, whole_logits)
    for name, reached in part.items():
        expected = whole[name]
        if reached is None or expected is None:
            assert expected is None or share == 0, name
        else:
            torch.testing.assert_close(reached, expected * (1 if "classifier" in name else share), msg=name)


def test_ranking_is_a_cross_entropy_of_the_counter_among_its_negatives() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = scores_of(4)
    negatives, logits = torch.randn(4, 3, 6, generator=generator), torch.randn(4, 4, 2, generator=generator)
    scores = vectors._replace(negative_BKD=negatives, counter_logits_B2=logits[:, 0], negative_logits_BK2=logits[:, 1:])
    parts = combined_loss(scores, LossConfig(triplet_weight=0, classification_weight=0.5, classification="ranking"))
    odds = torch.logit(logits.softmax(-1)[..., 1])
    expected = F.cross_entropy(odds, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(parts.ce_positive, expected)
    assert parts.ce_negative.item() == 0
    torch.testing.assert_close(parts.total, 0.5 * expected)


def test_reference_classifier_of_bert_base_has_2688_inputs() -> None:
    assert PairClassifier(ModelConfig(), embedding_dim=128, hidden=768).layers[-1].in_features == 2688


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_pooling_ignores_padding(tiny_bert: Path, pooling: str) -> None:
    model, tokens = make(tiny_bert, pooling=pooling)
    together = model(tokens.batch(np.array([0, 3]))).query
    alone = model(tokens.batch(np.array([0]))).query
    torch.testing.assert_close(together.pooled[:1], alone.pooled, rtol=1e-5, atol=1e-6)
    tower: Any = model.towers[0]
    states = tower.encoder(**as_inputs(tokens.batch(np.array([0]))))
    length = tokens.lengths(np.array(0))
    expected = {
        "cls": states.last_hidden_state[:, 0],
        "mean": states.last_hidden_state[:, :length].mean(1),
        "pooler": states.pooler_output,
    }[pooling]
    torch.testing.assert_close(alone.pooled, expected)


def as_inputs(tokens: Tokens) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens.input_ids_UL, "attention_mask": tokens.attention_mask_UL}


def test_embeddings_are_projected_and_normalised_where_configured(tiny_bert: Path) -> None:
    model, tokens = make(tiny_bert)
    vectors = model(tokens.batch(np.arange(5))).query
    torch.testing.assert_close(vectors.embedding, vectors.pooled @ cast(Any, model.towers[0]).projection.weight.T)
    unit, tokens = make(tiny_bert, normalize=True)
    torch.testing.assert_close(unit(tokens.batch(np.arange(5))).query.embedding.norm(dim=1), torch.ones(5))


def test_without_a_dimension_the_embedding_starts_as_the_pooled_vector(tiny_bert: Path) -> None:
    model, tokens = make(tiny_bert, embedding_dim=0)
    vectors = model(tokens.batch(np.arange(5))).query
    torch.testing.assert_close(vectors.embedding, vectors.pooled)


@pytest.mark.parametrize("pass_cost", [0, math.inf])
@pytest.mark.parametrize("sides", ["shared", "heads", "encoders"])
def test_a_triplet_batch_scores_what_its_texts_score_alone(tiny_bert: Path, sides: str, pass_cost: float) -> None:
    model, tokens = make(tiny_bert, sides=sides)
    if sides != "shared":  # they start equal: make them differ
        with torch.no_grad():
            model.candidate_tower.projection.weight.mul_(2.0)
    separate = sides == "encoders"
    split = Split("training", (), np.array([0, 1, 0]), np.array([2, 3, 4]))
    batch = triplet_batch(
        np.array([0, 1, 2]),
        split,
        np.array([[3, 1], [0, 4], [1, 3]]),
        tokens,
        one_encoder=model.one_encoder,
        rivals=True,
        pass_cost=pass_cost,
    )
    assert sum(len(group.input_ids_UL) for group in batch.texts if isinstance(group, Tokens)) == (2 if separate else 5)
    assert len(batch.candidates or batch.texts) == (1 if pass_cost else 2)
    scores = model(batch)
    queries, candidates = model(tokens.batch(np.arange(5)))
    point, counter = queries.rows(torch.tensor([0, 1, 0])), candidates.rows(torch.tensor([2, 3, 4]))
    negative = candidates.rows(torch.tensor([[3, 1], [0, 4], [1, 3]]))
    twice = queries.rows(torch.tensor([[0, 0], [1, 1], [0, 0]]))
    torch.testing.assert_close(scores.rival_BD, candidates.embedding[[0, 1, 0]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.point_BD, point.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.counter_BD, counter.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.negative_BKD, negative.embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.counter_logits_B2, model.classifier(point, counter), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.negative_logits_BK2, model.classifier(twice, negative), rtol=1e-4, atol=1e-5)


def test_length_groups_are_the_cheapest_of_all_cuts() -> None:
    rng = np.random.default_rng(0)
    for pass_cost in (0.0, 20.0, 90.0):
        lengths = rng.integers(3, 120, size=9)
        groups = length_groups(lengths, pass_cost, max_length=200)
        assert np.concatenate(groups).tolist() == np.argsort(-lengths, kind="stable").tolist()
        widths = -(-np.sort(lengths)[::-1] // 8) * 8

        def cost(cuts: tuple[int, ...], widths: Any = widths, pass_cost: float = pass_cost) -> float:
            edges = (0, *cuts, 9)
            return float(sum(widths[a] * (b - a) + pass_cost for a, b in itertools.pairwise(edges)))

        found = cost(tuple(np.cumsum([len(group) for group in groups])[:-1].tolist()))
        cheapest = min(cost(cuts) for n in range(9) for cuts in itertools.combinations(range(1, 9), n))
        assert found == cheapest
    assert len(length_groups(np.array([3, 500]), math.inf, max_length=512)) == 1


def test_separate_sides_start_equal_and_share_nothing(tiny_bert: Path) -> None:
    model, _ = make(tiny_bert, sides="encoders")
    query, candidate = (dict(tower.named_parameters()) for tower in model.towers)
    for name, weight in query.items():
        torch.testing.assert_close(weight, candidate[name])
        assert weight.data_ptr() != candidate[name].data_ptr()


def test_a_frozen_encoder_gets_no_gradient(tiny_bert: Path) -> None:
    model, _ = make(tiny_bert, freeze_encoder=True)
    names = {
        name.split(".")[2] if "towers" in name else "classifier" for name, p in model.named_parameters() if p.requires_grad
    }
    assert names == {"projection", "classifier"}


@pytest.mark.parametrize("sides", ["shared", "heads", "encoders"])
def test_gradient_checkpointing_changes_no_gradient(tiny_bert: Path, sides: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, tokens = make(tiny_bert, dropout=0.2, gradient_checkpointing=checkpointing, sides=sides)
        model.train()
        torch.manual_seed(7)
        sum(vectors.embedding.square().sum() for vectors in model(tokens.batch(np.arange(5)))).backward()
        layers = [cast(Any, tower).encoder.encoder.layer[0] for tower in model.towers]
        assert [layer.gradient_checkpointing for layer in layers] == [checkpointing] * len(layers)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 20
    torch.testing.assert_close(gradients[0], gradients[1])


def test_dropout_is_what_the_configuration_says(tiny_bert: Path) -> None:
    model, _ = make(tiny_bert, dropout=0.3, attention_dropout=0.05)
    settings = cast(Any, model.towers[0]).encoder.config
    assert (settings.hidden_dropout_prob, settings.attention_probs_dropout_prob) == (0.3, 0.05)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "/no/such/folder"}, "does not exist"),
        ({"name": "./models/none"}, "does not exist"),
        ({"name": "not-a-model-anywhere"}, "could not be downloaded from the hub"),
        ({"max_length": 512}, "more than the 64 tokens"),
    ],
)
def test_a_wrong_model_gets_one_sentence(tiny_bert: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError) as error:
        load_pretrained(ModelConfig(**{"name": str(tiny_bert), "max_length": 32, **settings}))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_packaged_model_needs_no_network() -> None:
    pretrained = load_pretrained(ModelConfig(name="minilm"))
    assert pretrained.pooling == "mean"
    assert pretrained.encoder.config.hidden_size == 384


def test_norms_and_biases_are_not_decayed(tiny_bert: Path) -> None:
    model, _ = make(tiny_bert)
    decayed, plain = build_optimizer(model, TrainConfig(optimizer="adamw", weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_lower_layers_learn_slower_and_heads_at_a_rate_of_their_own(two_layer_bert: Path) -> None:
    model, _ = make(two_layer_bert)
    factor = lr_factors(model, TrainConfig(layer_decay=0.5, head_lr_factor=10))
    assert {name: value for name, value in factor.items() if "encoder" not in name} == {
        "towers.0.projection.weight": 10,
        "classifier.layers.0.weight": 10,
        "classifier.layers.0.bias": 10,
    }
    for part, expected in {"pooler": 1, "layer.1.": 1, "layer.0.": 0.5, "embeddings": 0.25}.items():
        assert {value for name, value in factor.items() if part in name} == {expected}
    groups = build_optimizer(model, TrainConfig(layer_decay=0.5, head_lr_factor=10)).param_groups
    assert sorted({group["lr_factor"] for group in groups}) == [0.25, 0.5, 1, 10]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.5, 0]), ("cosine", [0.5, 1, 1, 0.5, 0])],
)
def test_schedules(kind: str, expected: list[float]) -> None:
    factor = schedule(TrainConfig(schedule=kind, warmup_ratio=0.2), total_steps=10)  # type: ignore[arg-type]
    assert [factor(step) for step in (0, 1, 2, 6, 10)] == pytest.approx(expected)


def test_vectors_rows() -> None:
    vectors = Vectors(torch.arange(3.0)[:, None], torch.arange(3.0)[:, None] * 10)
    assert vectors.rows(torch.tensor([2, 0])).pooled.ravel().tolist() == [20, 0]
