"""How long the ranks take to add up numbers: what each gradient's sum waits for."""

import time

import torch

from biencoder.distributed.world import World


def time_all_reduce(world: World, num_bytes: int, *, repeats: int, control: bool) -> list[float]:
    """Seconds that each all-reduce of `num_bytes` of fp32 took on this rank; the first one, which connects, is left out.

    Nothing is timed on one rank. Every rank takes part.

    Args:
        control: use the control group instead of the training group.

    Raises:
        RuntimeError: a sum is wrong, or a rank did not answer in time.
    """
    if world.size == 1:
        return []
    device = torch.device("cpu") if control else world.device
    values = torch.empty(num_bytes // 4, device=device)
    seconds, wrong = [], ""
    for _ in range(1 + repeats):
        values.fill_(1)
        _wait_for(device)
        start = time.perf_counter()
        world.all_reduce(values, control=control)
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
        if not bool((values == world.size).all()):
            wrong = f"a sum of ones over {world.size} ranks is {values.min():g} to {values.max():g}"
    if wrong:  # raised at the end: the other ranks count on this one for every sum
        raise RuntimeError(wrong)
    return seconds[1:]


def _wait_for(device: torch.device) -> None:
    """Wait for the work that a GPU was given; on a CPU it is done when the call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
