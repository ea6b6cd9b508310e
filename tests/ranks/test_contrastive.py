"""The contrastive loss, alone and with a pair classifier, and its gradient depend on the global batch alone: not on ranks,
micro-batches or ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from biencoder.model.bi_encoder import Vectors
from tests.launch import run_ranks
from tests.ranks.cases import steps

pytestmark = pytest.mark.ranks
FILES = [f"zero{stage} fp32" for stage in range(4)]


def plain_gradient(tiny_bert: Path, objective: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the same batch on one process, written from scratch: every text alone, every candidate by hand."""
    settings, weights = steps.OBJECTIVES[objective]
    model, tokens, split, negatives = steps.training_setup(str(tiny_bert), **settings)
    tower: Any = model.towers[0]
    samples = steps.samples_of(0)

    def pool(text: int) -> Any:
        ids = torch.tensor(tokens.flat_T[tokens.offsets_N1[text] : tokens.offsets_N1[text + 1]])[None].long()
        return tower.encoder(input_ids=ids).last_hidden_state[0].mean(0)

    points, counters = split.point_text_P[samples].tolist(), split.counter_text_P[samples].tolist()
    candidates = [*counters, *negatives[samples].ravel().tolist(), *points]
    pooled = {text: pool(text) for text in {*points, *candidates}}
    vectors: dict[int, torch.Tensor] = {text: vector @ tower.projection.weight.T for text, vector in pooled.items()}
    sizes = [16, 8, 4] if weights.get("matryoshka_dims") else [16]

    def loss(query: int, own: int, others: list[int]) -> torch.Tensor:
        def at(size: int) -> torch.Tensor:
            def vector(text: int) -> torch.Tensor:
                part = vectors[text][:size]
                return part / part.norm() if settings.get("normalize") else part

            def logit(text: int) -> torch.Tensor:
                return -(vector(query) - vector(text)).square().sum() / (2 * 0.05)

            return -logit(own) + torch.stack([logit(own), *map(logit, others)]).logsumexp(0)

        return torch.stack([at(size) for size in sizes]).sum()

    there = [loss(p, c, [t for t in candidates if t not in (p, c)]) for p, c in zip(points, counters, strict=True)]
    total = torch.stack(there).mean()
    if weights.get("symmetric"):
        back = [loss(c, p, [t for t in points if t != p]) for p, c in zip(points, counters, strict=True)]
        total = (total + torch.stack(back).mean()) / 2
    else:
        of = {text: Vectors(vectors[text], pooled[text]) for text in vectors}
        odds = [
            torch.stack([model.classifier(of[p], of[text])[1] for text in (c, *negatives[sample].tolist())])
            for p, c, sample in zip(points, counters, samples, strict=True)
        ]
        first = torch.zeros(len(odds), dtype=torch.long)
        total = total + weights["classification_weight"] * torch.nn.functional.cross_entropy(torch.stack(odds), first)
    total.backward()
    return total.item(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def test_the_gradient_is_that_of_the_global_batch_however_it_is_spread(tiny_bert: Path, tmp_path: Path) -> None:
    expected = {objective: plain_gradient(tiny_bert, objective) for objective in steps.OBJECTIVES}
    spreads = 0
    for ranks in (1, 2, 4):
        out, files = tmp_path / f"{ranks}.safetensors", {1: FILES[1::2], 2: FILES, 4: FILES[3:]}[ranks]
        ends, _ = run_ranks(
            "engine.contrastive_gradients", ranks, timeout_s=300, tiny_bert=str(tiny_bert), files=files, out=str(out)
        )
        assert [end.code for end in ends] == [0] * ranks, ends[0].stderr[-3000:]
        found = load_file(out)
        for spread in {key.rsplit(" ", 1)[0] for key in found}:
            loss, gradient = expected[spread.split()[0]]
            size = torch.cat([part.ravel() for part in gradient.values()]).norm()
            assert found[f"{spread} loss"].item() == pytest.approx(loss, rel=1e-5), (ranks, spread)
            difference = torch.cat([(found[f"{spread} {name}"] - part).ravel() for name, part in gradient.items()])
            assert difference.norm() < 1e-5 * size, (ranks, spread)
            spreads += 1
    assert spreads == len(expected) * (2 * 2 + 4 * 3 + 1 * 2)
