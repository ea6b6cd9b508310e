"""Train a counter-argument bi-encoder.

python launcher/train.py --config configs/quickstart.toml
torchrun --nproc_per_node=2 launcher/train.py --config configs/quickstart.toml --train.lr 1e-5
deepspeed launcher/train.py --deepspeed_config ds_configs/zero2_bf16.json --data.root DIR
With --preflight added, the same command checks the job instead of running it.
"""

import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from biencoder.distributed.launcher_watch import end_with_launcher
from biencoder.errors import ConfigError, tell
from launcher.entry import parse_run
from launcher.entry import run as run_command

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from biencoder.config import Config
    from biencoder.distributed.world import World


def main(argv: Sequence[str]) -> None:
    end_with_launcher()
    arguments = parse_run(argv, prog="train.py", description="Train a counter-argument bi-encoder.")
    # Heavy imports come after the arguments: `--help` and a misspelt key answer at once.
    from biencoder.distributed.join import join

    config = arguments.config
    with join(config.distributed) as ranks:
        if arguments.preflight:
            check(config, ranks)
        else:
            with ExitStack() as at_end:
                train(config, ranks, at_end)


def start_again(folder: Path) -> NoReturn:
    """Replace this process by a new start of the same run: whatever it held on the GPU is free then."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--run.dir", str(folder)])


def check(config: "Config", world: "World") -> None:
    """Try out what `train` would need, and print one table. Nothing is trained, and no folder is made."""
    from biencoder.tracking.terminal import Terminal
    from biencoder.training.opening import checks_table
    from biencoder.training.preflight.checks import preflight, raise_failed

    rows = preflight(config, world)
    Terminal(is_main=world.is_main).show(checks_table("Preflight: nothing was trained", rows))
    world.together(lambda: raise_failed(rows))


def hold(folder: Path, config: "Config", world: "World", at_end: ExitStack) -> None:
    """Have the run's folder for this run alone, until `at_end` is closed."""
    from biencoder.training.recovery.run_folder import check_folder
    from biencoder.training.recovery.run_lock import take_lock

    def lost(message: str) -> None:
        tell(f"error: {message}")
        world.end_all(message, exit_code=ConfigError.exit_code)
        os._exit(ConfigError.exit_code)  # what it still has to write would go among the files of the other run

    at_end.callback(take_lock(folder, lost=lost).release)
    check_folder(folder, config)  # it may have got a run while this one waited


def train(config: "Config", world: "World", at_end: ExitStack) -> None:
    """Check everything, build everything, then `fit`. Nothing is written before all checks have passed.

    Args:
        at_end: closed by the caller, or here before the process is ended from a thread.
    """
    from biencoder.data import Forbidden, load_dataset
    from biencoder.data.token_cache import cached_tokens
    from biencoder.distributed.stop_requests import StopRequests
    from biencoder.errors import OutOfMemory, Stopped
    from biencoder.mining import Miner
    from biencoder.model.bi_encoder import build_model
    from biencoder.model.folder import save_model
    from biencoder.model.pretrained import load_pretrained
    from biencoder.model.vocabulary import check_corpus
    from biencoder.model.whole_folder import put_back
    from biencoder.tracking.channel import Channel, protected
    from biencoder.tracking.names import Metrics
    from biencoder.tracking.terminal import Terminal
    from biencoder.tracking.tracker import open_tracker
    from biencoder.training.engine.engine import Engine, precision_of, read_settings
    from biencoder.training.engine.memory import check_mining_memory
    from biencoder.training.engine.precision import fast_precision
    from biencoder.training.loop import fit
    from biencoder.training.model_card import model_card
    from biencoder.training.model_folders import ModelFolders, Weights
    from biencoder.training.opening import closing_line, findings_table, opening_lines
    from biencoder.training.recovery.checkpoint import Checkpoint, CheckpointFolder
    from biencoder.training.recovery.out_of_memory import record_bound, within_bound
    from biencoder.training.recovery.resume import find_checkpoint, load_checkpoint, warn_of_failure
    from biencoder.training.recovery.run_folder import finished_at, record_end, record_start, record_stop, run_folder
    from biencoder.training.run import Progress, Run, steps_per_epoch, total_steps
    from biencoder.training.same_input import check_same, configuration_facts, input_facts

    terminal = protected(Terminal(is_main=world.is_main), Channel("the terminal", again=True))
    check_same(world, configuration_facts(config))
    world.together(lambda: config.check(world.size))
    folder, given = world.on_main(lambda: run_folder(config)), config
    config = world.on_main(lambda: within_bound(folder, given, world_size=world.size))
    auto = world.on_main(lambda: fast_precision(world.device))
    settings = world.together(lambda: read_settings(config, world.size, auto=auto))
    dataset = world.together(lambda: load_dataset(config.data.root, clean=config.data.clean))
    world.together(lambda: config.check_data(len(dataset.splits["training"])))
    pretrained = world.together(lambda: load_pretrained(config.model))
    names = {"root": config.data.root, "name": f"model.name {config.model.name}"}
    world.together(lambda: check_corpus(dataset.texts, pretrained.tokenizer, dataset.findings, **names))
    check_same(world, input_facts(dataset, pretrained, settings))
    hidden, training = pretrained.encoder.config.hidden_size, dataset.splits["training"]
    mining = world.together(lambda: check_mining_memory(config, world, num_texts=len(training.text_ids), hidden=hidden))
    last_step = total_steps(dataset, config)
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=config.checkpoint.keep)
    found: list[Checkpoint] = []  # on rank 0

    def look_for_checkpoint() -> int | None:
        checkpoint = find_checkpoint(checkpoints, config, fingerprint=dataset.fingerprint, precision=precision_of(settings))
        found.extend([checkpoint] if checkpoint else [])
        return checkpoint.step if checkpoint else None

    world.on_main(lambda: hold(folder, config, world, at_end))
    from_step = world.on_main(look_for_checkpoint)
    if from_step is not None and from_step >= last_step and world.on_main(lambda: finished_at(folder)) == from_step:
        terminal.say(closing_line(folder, config))
        return
    precision = precision_of(settings)
    facts = world.on_main(
        lambda: record_start(folder, config, dataset, precision=precision, world_size=world.size, from_step=from_step or 0)
    )

    def before_exit(exit_code: int) -> None:
        if world.is_main:
            if exit_code == Stopped.exit_code:
                record_stop(folder)
            if exit_code == OutOfMemory.exit_code:
                record_bound(folder, config, world_size=world.size)
            try:
                checkpoints.wait()
            except OSError as error:
                warn_of_failure(error)
            at_end.close()

    world.before_end(before_exit)
    stop = StopRequests(world, before_exit=before_exit)
    terminal.show(*findings_table(dataset.findings))
    if precision != "fp32" and auto == "fp32":
        terminal.say(f"Beware: this machine computes {precision} slower than fp32; take ds_configs/zero1_auto.json")
    terminal.show(*opening_lines(config, dataset, world, folder, precision=precision, mining=mining, from_step=from_step))
    for notice in pretrained.notices:
        terminal.say(f"beware   {config.model.name}: {notice}")
    tokens = cached_tokens(dataset.texts, pretrained.tokenizer, max_length=config.model.max_length, world=world)
    model = build_model(config.model, pretrained, seed=config.run.seed)
    engine = Engine(model, config.train, settings, world, last_step)
    same_N = world.on_main(lambda: alike(dataset.texts)) if config.mining.exclude_near_duplicates else None
    forbidden = Forbidden.of(training, len(dataset.texts), same_N=same_N)
    num_epochs = math.ceil(last_step / steps_per_epoch(dataset, config))
    miner = Miner(training, forbidden, world, config.mining, seed=config.run.seed, num_epochs=num_epochs)
    tracker = world.together(
        lambda: open_tracker(config, folder, facts, precision=precision, show=terminal.alert, is_main=world.is_main)
    )

    def write_model(place: Path, weights: Weights, metrics: Metrics, step: int) -> None:
        if not config.loss.classification_weight:  # what no loss has trained is no classifier
            weights = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
        card = Channel("the model card").run(lambda: model_card(config, dataset, metrics, step=step)) or ""
        save_model(place, model, weights, pretrained.tokenizer, config.model, card=card, clean=config.data.clean)

    models = ModelFolders(folder, world, engine, write_model)
    run = Run(
        config, world, dataset, tokens, engine, miner, checkpoints, stop, tracker, terminal, forbidden, folder, models
    )
    if from_step is None:
        progress = Progress(world.device)
        tracker.rewind(0)
    else:
        progress = load_checkpoint(run, found.pop() if found else None)
        world.on_main(lambda: put_back(folder / "model" / "best"))
        tracker.event("resumed", step=progress.step, epoch=progress.epoch, detail=f"on {world.size} ranks")
    if config != given:
        detail = f"of {config.train.micro_batch_size} triplets, as more did not fit"
        tracker.event("smaller micro-batch", step=progress.step, epoch=progress.epoch, detail=detail)
    try:
        fit(run, progress)
    except Stopped:
        world.on_main(lambda: record_stop(folder))
        tracker.close()
        raise
    except OutOfMemory as error:
        before_exit(error.exit_code)
        tracker.close()
        if world.size == 1:
            tell(f"{error.kind}: {error}")
            start_again(folder)
        raise
    world.on_main(lambda: record_end(folder, step=engine.steps))
    stop.close()
    best = folder / "model" / "best"
    tracker.close(model=best if best.is_dir() else None)
    terminal.say(closing_line(folder, config))


def alike(texts: "Sequence[str]") -> "npt.NDArray[np.int64]":
    """See `near_duplicates`, whose library takes half a second to import."""
    from biencoder.data.near_duplicates import near_duplicates

    return near_duplicates(texts)


def command() -> None:
    run_command(main)


if __name__ == "__main__":
    command()
