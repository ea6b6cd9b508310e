"""What embeddings, index and the model's training state will take on a rank, and what memory there is: known beforehand.

N: texts that the rank holds, D: similarity embedding, H: hidden size.
"""

from pathlib import Path

import psutil

from biencoder.config.schema import Config
from biencoder.distributed.world import World
from biencoder.errors import ConfigError
from biencoder.training.engine.settings import Settings, precision_of

GIB = 2**30
_WORKING_BYTES = GIB // 2
"""Buffers of searching and ranking, and the ball tree that holds up to 20,000 texts against another index; they are bounded
whatever the corpus."""


def available_bytes() -> int:
    """Memory that may still be taken: free on the machine, within this job's cgroup limit if it has one."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return free


def mining_bytes(config: Config, *, num_texts: int, hidden: int, world_size: int) -> int:
    """Most that the training split's embeddings and their index take on one rank that holds them."""
    N = -(-num_texts // world_size) if config.mining.sharded else num_texts
    D = config.model.embedding_dim
    sides = 1 if config.model.sides_agree else 2
    vectors = 4 * (D + hidden) * sides * N
    # Each index copies the vectors. The ball tree keeps them in float64, and with leaves of 2 about as many centroids.
    # To find its cells, ivf takes up to 256 vectors for each, which are all of them up to a million: one more copy.
    # The recall of ivf and hnsw is measured on the vectors where they are, without another copy.
    per_text = {"balltree": 16 * D + 32, "flat": 4 * D, "ivf": 8 * D + 8, "hnsw": 4 * D + 32 * 2 * 4 + 32}
    index = per_text[config.mining.index if config.mining.index == "balltree" else config.mining.faiss_kind] * N
    if config.mining.given == "only":  # nothing is searched
        index = 0
    # With overlap the embeddings that are searched live on while the next ones are made.
    return vectors * (2 if config.mining.overlap else 1) + index + _WORKING_BYTES


def check_mining_memory(config: Config, world: World, *, num_texts: int, hidden: int) -> str:
    """One line that says what mining will take on the ranks that hold embeddings. Call it on every rank.

    Raises:
        ConfigError: it is more than `mining.memory_gib`, or than this rank has.
    """
    needed = mining_bytes(config, num_texts=num_texts, hidden=hidden, world_size=world.size) / GIB
    mining = config.mining
    free = available_bytes() / GIB / (world.ranks_on_this_host if mining.sharded else 1)
    bound = mining.memory_gib or free
    what = f"{mining.index} {mining.faiss_kind}" if mining.index == "faiss" else mining.index
    what = "given negatives alone" if mining.given == "only" else what
    where = "each rank" if mining.sharded else "rank 0"
    if needed > bound and (mining.sharded or world.is_main):
        limit = (
            f"mining.memory_gib allows {bound:.1f}"
            if mining.memory_gib
            else f"{world.hosts[world.rank]} has {bound:.1f} free"
        )
        way_out = "use more ranks" if mining.sharded else "set mining.placement = sharded to spread it over the ranks"
        raise ConfigError(f"mining {num_texts} texts takes {needed:.1f} GiB on {where}, but {limit}; {way_out}")
    return f"{what} over {num_texts} texts, up to {needed:.1f} GiB on {where} ({free:.1f} free)"


def state_bytes(settings: Settings, num_parameters: int, *, num_ranks: int) -> int:
    """Weights, gradients and Adam's state on one rank's device; activations and `bucket_bytes` come on top.

    In bytes a parameter: 4 for a weight and 4 for its gradient in fp32, 2 and 2 in 16 bits; 8 for the moments; and 4 for
    an fp32 copy of the weight, in 16 bits, and in fp32 from stage 1 on, where DeepSpeed makes one as well. Stage 1 divides
    copy and moments by the ranks, stage 2 the gradients too, stage 3 everything. What is offloaded is not on the device.
    """
    zero = settings["zero_optimization"]
    stage, width = int(zero.get("stage", 0)), _width(settings)
    weights = 0.0 if "offload_param" in zero else width / (num_ranks if stage >= 3 else 1)
    if "offload_optimizer" in zero:  # gradients leave the device with their bucket
        return round(num_parameters * weights)
    gradients = width / (num_ranks if stage >= 2 else 1)
    copy = 4 if width == 2 or stage else 0
    return round(num_parameters * (weights + gradients + (copy + 8) / (num_ranks if stage else 1)))


def offloaded_bytes(settings: Settings, num_parameters: int, *, num_ranks: int) -> int:
    """What DeepSpeed keeps in the host's memory for one rank instead: 0 where nothing is offloaded.

    In bytes a parameter: 12 for fp32 copy and moments, 4 for the gradient in fp32, as much as a weight for passing it to
    and fro, and the weight itself if it is offloaded; all divided by the ranks.
    """
    zero, width = settings["zero_optimization"], _width(settings)
    weights = width if "offload_param" in zero else 0
    optimizer = 12 + 4 + width if "offload_optimizer" in zero else 0
    return round(num_parameters * (weights + optimizer) / num_ranks)


def interpolation_bytes(settings: Settings, num_parameters: int, *, share: float, num_ranks: int) -> int:
    """What train.pretrained_share keeps in the host's memory for one rank: the pretrained weights, and the trained ones
    while the rank embeds or saves; under ZeRO-3 the rank's part of them. 0 without a share."""
    ranks = num_ranks if int(settings["zero_optimization"].get("stage", 0)) >= 3 else 1
    return round(num_parameters * 2 * _width(settings) / ranks) if share else 0


def bucket_bytes(settings: Settings) -> int:
    """The buffers of fixed size that ZeRO collects gradients in before it sums them over the ranks, on one device."""
    zero = settings["zero_optimization"]
    stage = int(zero.get("stage", 0))
    if not stage or not zero.get("contiguous_gradients", True):
        return 0
    buffers = 2 if stage < 3 and zero.get("overlap_comm") else 1
    return int(zero.get("reduce_bucket_size", 5e8)) * _width(settings) * buffers


def _width(settings: Settings) -> int:
    """Bytes of one weight or gradient."""
    return 4 if precision_of(settings) == "fp32" else 2
