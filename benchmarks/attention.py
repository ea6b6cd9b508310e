"""Forward and backward pass of attention on this CPU: PyTorch's fused kernel against model/attention.py.

python benchmarks/attention.py [--threads 1]
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from biencoder.model.attention import attention_forward

SHAPES = ((48, 64, 12, 32), (48, 128, 12, 32), (24, 256, 12, 32), (12, 512, 12, 32), (24, 128, 12, 64))
"""Texts, tokens, heads, dimensions of a head."""
WAYS = {"fused": sdpa_attention_forward, "blocks": attention_forward}


def seconds(way: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[float, float]:
    texts, tokens, heads, size = shape
    torch.manual_seed(0)
    inputs = [torch.randn(texts, heads, tokens, size).to(dtype).requires_grad_() for _ in range(3)]
    lengths = torch.linspace(tokens // 2, tokens, texts).long()
    mask = (torch.arange(tokens) < lengths[:, None])[:, None, None, :].expand(texts, 1, tokens, tokens)
    module = torch.nn.Module()
    start = time.perf_counter()
    query, key, value = inputs
    out, _ = WAYS[way](module, query, key, value, mask)
    middle = time.perf_counter()
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    return middle - start, time.perf_counter() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = Table(title=f"ms, forward + backward, {given.threads} threads", box=None)
    for column in ("texts x tokens x heads x dim", "dtype", *WAYS, "ratio"):
        table.add_column(column, justify="right")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(1 + given.repeats):  # in turns; the first warms up
                for way, rows in times.items():
                    rows.append(seconds(way, shape, dtype))
            middle = {
                way: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for way, rows in times.items()
            }
            cells = [f"{1000 * forward:.0f} + {1000 * backward:.0f}" for forward, backward in middle.values()]
            ratio = sum(middle["fused"]) / sum(middle["blocks"])
            table.add_row(" x ".join(map(str, shape)), str(dtype).removeprefix("torch."), *cells, f"{ratio:.2f}")
    Console().print(table)
    print("AMX:", torch.cpu._is_amx_tile_supported(), "AVX512-BF16:", torch.cpu._is_avx512_bf16_supported())


if __name__ == "__main__":
    main()
