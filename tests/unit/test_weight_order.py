"""Products with reordered weights are those with plain ones, and only while weights stay as they are."""

from pathlib import Path

import pytest
import torch
from torch import nn

from biencoder.config.schema import ModelConfig
from biencoder.model import weight_order
from biencoder.model.weight_order import reorder_weights, weights_reordered
from biencoder.retrieval.trained_model import TrainedModel


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    monkeypatch.setattr(weight_order, "cpu_knows_bf16", lambda: True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32, bias=False)).bfloat16()
    with weights_reordered(network):
        if type(network[0]) is nn.Linear:
            pytest.skip("this PyTorch has no such product on this processor")
    return network


@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (2, 5, 64), (0, 64)])
def test_products_are_the_same_bit_for_bit(network: nn.Sequential, shape: tuple[int, ...]) -> None:
    texts = torch.randn(*shape).bfloat16()
    with torch.inference_mode():
        plain = network(texts)
        plain_of_first = network(texts.reshape(-1, 1, 64)[:, 0])
        with weights_reordered(network):
            assert torch.equal(network(texts), plain)
            assert torch.equal(network(texts.reshape(-1, 1, 64)[:, 0]), plain_of_first)


def test_weights_that_change_afterwards_are_used(network: nn.Sequential) -> None:
    texts = torch.ones(3, 64).bfloat16()
    with torch.no_grad():
        with weights_reordered(network):
            network(texts)
        network.get_parameter("2.weight").zero_()
        assert not network(texts).any()
        with weights_reordered(network):
            assert not network(texts).any()


def test_a_model_that_is_trained_after_all_has_no_old_weights(network: nn.Sequential) -> None:
    reorder_weights(network)
    texts = torch.ones(3, 64).bfloat16()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network(texts).sum().backward()
    optimizer.step()
    network.eval()
    weights = list(network.parameters())
    with torch.inference_mode():
        hidden = nn.functional.gelu(nn.functional.linear(texts, weights[0], weights[1]))
        assert torch.equal(network(texts), nn.functional.linear(hidden, weights[2]))
        assert network.float()(texts.float()).dtype == torch.float32


def test_gradients_and_saved_weights_know_nothing_of_it(network: nn.Sequential) -> None:
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with weights_reordered(network):
        network(torch.ones(3, 64).bfloat16()).sum().backward()
        assert all(weight.grad is not None for weight in network.parameters())
        after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_cannot_be_reordered_stays_plain(network: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not reorder_weights(nn.Sequential(nn.Linear(4, 4)))  # fp32
    network.get_parameter("0.weight").data = torch.empty(0, dtype=torch.bfloat16)  # as ZeRO-3 leaves it
    assert reorder_weights(network) == [network[2]]
    for broken in (RuntimeError("no kernel"), AttributeError("no such product")):

        def fails(*_: object, error: Exception = broken) -> torch.Tensor:
            raise error

        monkeypatch.setattr(weight_order, "_product", fails)
        assert not reorder_weights(nn.Sequential(nn.Linear(4, 4)).bfloat16())
    monkeypatch.setattr(weight_order, "_product", lambda input, reordered, bias: torch.zeros(len(input), 4).bfloat16())
    assert not reorder_weights(nn.Sequential(nn.Linear(4, 4)).bfloat16())


@pytest.mark.usefixtures("network")  # skips where there is no such product
def test_a_model_that_is_loaded_multiplies_so(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, config = ["Cars should leave the city.", "no"], ModelConfig(name=str(tiny_bert), max_length=32, embedding_dim=0)
    vectors, layers = [], []
    for known in (False, True):
        monkeypatch.setattr(weight_order, "cpu_knows_bf16", lambda known=known: known)
        trained = TrainedModel.pretrained(config, precision="bf16")
        vectors.append(trained.encode(texts))
        layers.append(sum(hasattr(layer, "reordered") for layer in trained.model.modules()))
    assert layers[0] == 0 < layers[1]
    assert (vectors[0] == vectors[1]).all()
