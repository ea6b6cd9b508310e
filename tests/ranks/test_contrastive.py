"""The contrastive loss and its gradient depend on the global batch alone: not on ranks, micro-batches or ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.launch import run_ranks
from tests.ranks import cases

pytestmark = pytest.mark.ranks
FILES = [f"zero{stage} fp32" for stage in range(4)]


def plain_gradient(tiny_bert: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the same batch on one process, written from scratch: every text alone, every candidate by hand."""
    model, tokens, split, negatives = cases.training_setup(str(tiny_bert))
    tower: Any = model.towers[0]
    samples = cases.samples_of(0)

    def encode(text: int) -> torch.Tensor:
        ids = torch.tensor(tokens.flat_T[tokens.offsets_N1[text] : tokens.offsets_N1[text + 1]])[None].long()
        embedding: torch.Tensor = tower.encoder(input_ids=ids).last_hidden_state[0].mean(0) @ tower.projection.weight.T
        return embedding

    points, counters = split.point_text_P[samples].tolist(), split.counter_text_P[samples].tolist()
    candidates = [*counters, *negatives[samples].ravel().tolist(), *points]
    vectors = {text: encode(text) for text in {*points, *candidates}}

    def loss(query: int, own: int, others: list[int]) -> torch.Tensor:
        def logit(text: int) -> torch.Tensor:
            return -(vectors[query] - vectors[text]).square().sum() / (2 * 0.05)

        return -logit(own) + torch.stack([logit(own), *map(logit, others)]).logsumexp(0)

    there = [loss(p, c, [t for t in candidates if t not in (p, c)]) for p, c in zip(points, counters, strict=True)]
    back = [loss(c, p, [t for t in points if t != p]) for p, c in zip(points, counters, strict=True)]
    total = (torch.stack(there).mean() + torch.stack(back).mean()) / 2
    total.backward()
    return total.item(), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def test_the_gradient_is_that_of_the_global_batch_however_it_is_spread(tiny_bert: Path, tmp_path: Path) -> None:
    loss, gradient = plain_gradient(tiny_bert)
    size = torch.cat([part.ravel() for part in gradient.values()]).norm()
    spreads = 0
    for ranks in (1, 2, 4):
        out = tmp_path / f"{ranks}.safetensors"
        ends, _ = run_ranks(
            "contrastive_gradients", ranks, timeout_s=300, tiny_bert=str(tiny_bert), files=FILES, out=str(out)
        )
        assert [end.code for end in ends] == [0] * ranks, ends[0].stderr[-3000:]
        found = load_file(out)
        for spread in {key.rsplit(" ", 1)[0] for key in found}:
            assert found[f"{spread} loss"].item() == pytest.approx(loss, rel=1e-5), (ranks, spread)
            difference = torch.cat([(found[f"{spread} {name}"] - part).ravel() for name, part in gradient.items()])
            assert difference.norm() < 1e-5 * size, (ranks, spread)
            spreads += 1
    assert spreads == len(FILES) * (3 + 3 + 2)
