"""A step on a GPU against the same step on a CPU. Needs a GPU, and `TEST_ON_GPU=1` so that the tests see it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from biencoder.config.schema import ModelConfig
from biencoder.data.tokens import tokenize
from biencoder.model.attention import use_gpu_kernels
from biencoder.model.bi_encoder import TripletBatch, build_model
from biencoder.model.pretrained import load_pretrained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and TEST_ON_GPU=1")

TEXTS = ("the quick brown fox", "a dog", "taxes rise and fall", "votes fall with lazy taxes and a fox", "point", "counter")


@pytest.fixture
def default_mode() -> Iterator[None]:
    """Ends what a test begins: that whatever would wait for the GPU raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def losses_and_gradients(folder: Path, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of one pass over two triplets without dropout."""
    config = ModelConfig(name=str(folder), max_length=16, dropout=0.0, embedding_dim=8)
    pretrained = load_pretrained(config)
    model = build_model(config, pretrained, seed=0).to(device)
    if device.type == "cuda":
        use_gpu_kernels(model.encoders)
    tokens = tokenize(TEXTS, pretrained.tokenizer, max_length=16).batch(np.arange(6))
    negatives = torch.tensor([[4], [5]])
    batch = TripletBatch([tokens], None, torch.tensor([0, 1]), torch.tensor([2, 3]), negatives, None)
    scores = model((batch.pinned() if device.type == "cuda" else batch).to(device))
    loss = scores.counter_logits_B2.logsumexp(1).sum() + (scores.point_BD * scores.counter_BD).sum()
    loss.backward()
    return loss.detach(), [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_a_step_is_that_of_a_cpu(tiny_bert: Path) -> None:
    expected, gradients = losses_and_gradients(tiny_bert, torch.device("cpu"))
    found, on_gpu = losses_and_gradients(tiny_bert, torch.device("cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    norm = torch.cat([part.flatten() for part in gradients]).norm()
    error = torch.cat([(own.cpu() - other).flatten() for own, other in zip(on_gpu, gradients, strict=True)]).norm()
    assert error < 1e-3 * norm  # by norm: a key's bias has no true gradient


def test_a_pass_waits_for_nothing(tiny_bert: Path, default_mode: None) -> None:
    config = ModelConfig(name=str(tiny_bert), max_length=16, embedding_dim=8)
    pretrained = load_pretrained(config)
    model = build_model(config, pretrained, seed=0).cuda()
    use_gpu_kernels(model.encoders)
    tokens = tokenize(TEXTS, pretrained.tokenizer, max_length=16).batch(np.arange(6)).pinned()
    torch.cuda.set_sync_debug_mode("error")
    model(tokens.to(torch.device("cuda"))).query.embedding.sum().backward()
