"""Training from another program, without a command."""

from pathlib import Path

from biencoder.config.schema import Config
from biencoder.distributed.join import join
from biencoder.training import run


def train(config: Config) -> Path:
    """Train in this process, which is one rank, or one of the ranks that torchrun, deepspeed or srun has started.

    It must be called from the main thread: SIGTERM and SIGUSR1 save a checkpoint and stop the run. A call for a `run.dir`
    that holds an unfinished run goes on with that.

    Returns:
        The run's folder. `TrainedModel.load` takes its `model/best`; metrics.jsonl and report.html are there too.

    Raises:
        ConfigError, DataError, ModelError: before anything is written, if the run cannot be.
        Stopped: a signal has asked for it; the same call goes on.
        OutOfMemory: a micro-batch does not fit the GPU; the same call goes on with a smaller one, best in a new process.
        PeerError: another rank has failed.
    """
    with join(config.distributed) as world:
        return run.train(config, world)
