"""What a run goes on from: collected on all ranks and written by rank 0, read by rank 0 and handed to all.

Random draws and data order are functions of (seed, epoch), dropout's masks of (seed, step, rank, micro-batch), so no
generator's state is kept. What is kept: weights and moments (whole, in fp32), counters, the negatives of the epoch, a
background search's input, the sums of the metrics not yet logged, and how far the metrics file reached.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from biencoder.config import Config, OnResume, resume_rules
from biencoder.errors import ConfigError, tell
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.training.engine.state import EngineState
from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
from biencoder.training.run import Progress, Run

_FORMAT = 2
"""Of what a checkpoint holds; another one's counters and names mean something else."""


def save_checkpoint(run: Run, progress: Progress) -> None:
    """Begin to write where the run stands; the files are finished in the background. Every rank takes part."""
    if progress.saved_step == progress.step:
        return
    progress.saved_step, progress.saved_at, start = progress.step, time.monotonic(), time.perf_counter()
    engine, window = run.engine.state(), progress.window
    sums_R = run.world.gather(window.parts[None])
    if engine is None or sums_R is None:
        return
    mining = {"window": torch.cat(sums_R)}
    negatives = run.miner.last if progress.negatives is None else progress.negatives
    if negatives is not None:
        mining["negatives"] = torch.from_numpy(negatives)
    ahead = run.miner.ahead
    if ahead and ahead[1]:
        mining["ahead_query"] = ahead[1].query.embedding.contiguous()
        mining["ahead_candidate"] = ahead[1].candidate.embedding.clone()
    state = {
        "format": _FORMAT,
        "epoch": progress.epoch,
        "best": progress.best,
        "best_step": progress.best_step,
        "evaluations_since_best": progress.evaluations_since_best,
        "rollbacks": progress.rollbacks,
        "skipped_in_a_row": progress.skipped_in_a_row,
        "epoch_is_mined": progress.negatives is not None,
        "window_steps": window.steps,
        "ahead": ahead[0] if ahead else None,
        "engine": engine.scalars,
        "metrics_bytes": run.tracker.position(),
        "precision": run.engine.precision,
        "fingerprint": run.dataset.fingerprint,
        "settings": run.config.flat(),
    }
    try:
        run.checkpoints.write(
            Checkpoint(progress.step, state, engine.model, engine.optimizer, mining), also_keep=progress.best_step
        )
    except OSError as error:
        report_failure(run, progress, error)
    blocked = {"checkpoint/blocked_s": time.perf_counter() - start}
    run.tracker.log("checkpoint", step=progress.step, epoch=progress.epoch, metrics=blocked)


def finish_writing(run: Run, progress: Progress) -> None:
    """Wait until the last checkpoint is on the disk, or say that it is not. For rank 0."""
    try:
        run.checkpoints.wait()
    except OSError as error:
        report_failure(run, progress, error)


def report_failure(run: Run, progress: Progress, error: OSError) -> None:
    """A checkpoint could not be written: training goes on, the one before it still stands."""
    message = warn_of_failure(error)
    run.tracker.event("checkpoint failed", step=progress.step, epoch=progress.epoch, detail=message)


def warn_of_failure(error: OSError) -> str:
    message = f"a checkpoint could not be written ({error.strerror or error}); training goes on, the one before it stands"
    tell(f"warning: {message}")
    return message


def newest_checkpoint(folder: CheckpointFolder) -> Checkpoint | None:
    """The newest whole checkpoint, if any; damaged ones are named on stderr. For rank 0."""
    checkpoint, complaints = folder.newest()
    for complaint in complaints:
        tell(f"warning: {complaint}")
    return checkpoint


def find_checkpoint(folder: CheckpointFolder, config: Config, *, fingerprint: str, precision: str) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one. For rank 0.

    Raises:
        ConfigError: none is whole, or the newest belongs to other settings, data or precision.
    """
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        if folder.holds_any():
            raise ConfigError(f"no checkpoint in {config.run.dir} is whole; choose another run.dir to start anew")
        return None
    if checkpoint.state.get("format") != _FORMAT:
        raise ConfigError(
            f"the checkpoints in run.dir {config.run.dir} were written by another version of this program; go on with that "
            "version, or choose another run.dir to start anew"
        )
    differing = _differing(checkpoint.state["settings"], config)
    facts = {"fingerprint": ("the corpus's fingerprint", fingerprint), "precision": ("the precision", precision)}
    for fact, (name, now) in facts.items():
        if checkpoint.state[fact] != now:
            differing.append(f"{name} was {checkpoint.state[fact]} and is {now}")
    if differing:
        raise ConfigError(
            f"run.dir {config.run.dir} holds a run with other settings: {'; '.join(differing)}; set them back, or choose "
            "another run.dir"
        )
    return checkpoint


def _differing(then: Mapping[str, Any], config: Config) -> list[str]:
    """Each setting that this resume must not change and that has changed, with its old and new value."""
    rules, told = resume_rules(), []
    for key, value in config.flat().items():
        if then.get(key) == value or rules[key] is OnResume.FREE:
            continue
        if rules[key] is OnResume.FIXED:
            told.append(f"{key} was {then.get(key)!r} and is {value!r}")
        elif not config.can_be_prolonged:
            told.append(
                f"{key} was {then.get(key)!r} and is {value!r}, which train.schedule = {config.train.schedule} with "
                f"train.warmup_ratio = {config.train.warmup_ratio:g} does not allow"
            )
    return told


def load_checkpoint(run: Run, checkpoint: Checkpoint | None, *, went_back: bool = False) -> Progress:
    """Put the run where the checkpoint was taken. Every rank takes part; only rank 0 has the checkpoint.

    Args:
        went_back: the steps to come are other ones than those that were made from there.
    """
    world = run.world
    engine = (
        EngineState(dict(checkpoint.model), dict(checkpoint.optimizer), checkpoint.state["engine"]) if checkpoint else None
    )
    run.engine.load_state(engine)
    state: dict[str, Any] = world.on_main(lambda: checkpoint.state if checkpoint else {})
    progress = Progress(run.world.device)
    progress.step = progress.saved_step = int(state["step"])
    progress.epoch, progress.best, progress.best_step = int(state["epoch"]), float(state["best"]), int(state["best_step"])
    progress.evaluations_since_best = int(state["evaluations_since_best"])
    progress.rollbacks, progress.skipped_steps = int(state["rollbacks"]), run.engine.skipped_steps
    progress.skipped_in_a_row = int(state["skipped_in_a_row"])
    progress.window.steps = int(state["window_steps"])

    mining = checkpoint.mining if checkpoint else {}
    ranks, has_negatives = world.on_main(lambda: (len(mining["window"]), "negatives" in mining))
    sums_RK = world.broadcast(mining.get("window", torch.empty(ranks, len(progress.window.parts))).clone(), source=0)
    # On another number of ranks the sums are shared out evenly: their mean over the ranks is what gets logged.
    mine = sums_RK[world.rank] if ranks == world.size else sums_RK.mean(0)
    progress.window.parts = mine.to(run.world.device)
    if has_negatives:
        shape = (run.num_samples, run.config.mining.negatives)
        negatives = mining["negatives"].numpy().copy() if mining else np.empty(shape, dtype=np.int64)
        run.miner.last = world.broadcast(torch.from_numpy(negatives)).numpy()
        progress.negatives = run.miner.last if state["epoch_is_mined"] else None
    if state["ahead"] is not None:
        run.miner.search_ahead(int(state["ahead"]), _searched(run, mining) if mining else None)
    rewind = run.tracker.go_back if went_back else run.tracker.rewind
    rewind(int(state["metrics_bytes"]))
    return progress


def _searched(run: Run, mining: Any) -> EmbeddedTexts:
    """The embeddings that a background search was looking at; their pooled vectors were not needed and not kept."""
    query, candidate = (
        Vectors(rows, rows.new_empty(len(rows), 0)) for rows in (mining["ahead_query"], mining["ahead_candidate"])
    )
    return EmbeddedTexts.whole(run.dataset.splits["training"].text_ids, query, candidate)
