"""Try many settings: draw trials from a sweep's definition, run them, and rank them on validation.

python launcher/sweep.py local --trials 16 -- --data.root DIR      here, one after the other
python launcher/sweep.py slurm --trials 16 -- --data.root DIR      writes an array's lines, prints its sbatch command
python launcher/sweep.py rank runs/sweep                           (or runs/slurm-JOB_*)

What follows `--` are further arguments of train.py for all trials. Started again, `local` goes on where it was; with more
trials it prolongs the sweep.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from biencoder.errors import ConfigError, FailedTrialsError, Interrupted
from launcher.entry import Parser, parse_run
from launcher.entry import run as run_command

if TYPE_CHECKING:
    from biencoder.config.schema import Config

_TRAIN = Path(__file__).with_name("train.py")
_WIDE = 200
"""Columns of a table that goes into a file."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    shared: list[str]
    """Arguments of train.py that all trials get."""
    trials: list[list[str]]
    """Each trial's own arguments."""

    @property
    def lines(self) -> str:
        return "".join(f"{' '.join(trial)}\n" for trial in self.trials)


def main(argv: Sequence[str]) -> None:
    own, further = list(argv), []
    if "--" in own:
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    arguments = parse(own)
    if arguments.command == "rank":
        show_ranking(arguments.folders)
        return
    plan = make_plan(arguments, further)
    if arguments.command == "slurm":
        slurm(plan, arguments.out)
    else:
        local(plan, arguments.out)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="sweep.py", description=__doc__, example="local --trials 16 -- --data.root DIR")
    commands = parser.add_subparsers(dest="command", required=True, metavar="local | slurm | rank")
    for name, text, out, default in (
        ("local", "run the trials here, one after the other", "the sweep's folder", "runs/sweep"),
        ("slurm", "write the lines of a Slurm array", "the file to write", "runs/sweep.txt"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--trials", type=int, required=True, metavar="N", help="trials, the base configuration included"
        )
        command.add_argument(
            "--sweep", type=Path, default=Path("configs/sweep.yaml"), metavar="FILE", help="the definition"
        )
        command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (not of the runs)")
        command.add_argument("--out", type=Path, default=Path(default), metavar="PATH", help=f"{out} [default: {default}]")
    command = commands.add_parser("rank", help="rank trials on validation", description="rank trials on validation")
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a sweep's folder, or folders of runs")
    arguments = parser.parse_args(argv)
    for name, least in (("trials", 1), ("seed", 0)):
        if getattr(arguments, name, least) < least:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}, expected an integer >= {least}")
    return arguments


def make_plan(arguments: argparse.Namespace, further: Sequence[str]) -> SweepPlan:
    """All trials, each of them checked before any is started."""
    from biencoder.training.sweep import as_arguments, read_sweep

    sweep = read_sweep(arguments.sweep)
    shared = [*sweep.base, *further]
    base = resolve(shared)
    if base.run.dir:
        raise ConfigError("run.dir is set, but each trial has a folder of its own; leave it out")
    trials = [as_arguments(trial) for trial in sweep.trials(arguments.trials, seed=arguments.seed, base=base)]
    for number, trial in enumerate(trials):
        try:
            resolve([*shared, *trial]).check(world_size=1)
        except ConfigError as error:
            raise ConfigError(f"trial {number} of {sweep.file} ({shlex.join(trial)}): {error}") from None
    return SweepPlan(shared, trials)


def resolve(arguments: Sequence[str]) -> "Config":
    """The configuration that arguments of train.py amount to."""
    return parse_run(arguments, prog="train.py", description="").config


def write_lines(plan: SweepPlan, file: Path) -> None:
    """One line of arguments a trial. A sweep in progress reads this file: it may grow, but no line may change.

    Raises:
        ConfigError: the file holds another sweep, or cannot be written.
    """
    try:
        held = file.read_text(encoding="utf-8") if file.exists() else ""
        if not plan.lines.startswith(held) and not held.startswith(plan.lines):
            raise ConfigError(f"{file} holds the trials of another sweep; choose another --out")
        if len(plan.lines) > len(held):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(plan.lines, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None


def slurm(plan: SweepPlan, file: Path) -> None:
    from biencoder.config.paths import typed

    for trial in plan.trials:
        if any(len(part.split()) != 1 for part in trial):  # the job splits its line at blanks
            raise ConfigError(
                f"the trial {shlex.join(trial)} has a value that is empty or holds a blank; Slurm needs others"
            )
    write_lines(plan, file)
    sbatch = ["sbatch", "--nodes=1", "--gpus-per-node=1", f"--array=0-{len(plan.trials) - 1}", f"--export=ALL,SWEEP={file}"]
    print(f"{file} holds {len(plan.trials)} trials; the first one has the base configuration's values. Submit them with")
    print(f"  {shlex.join([*sbatch, 'slurm/train.sh', *plan.shared])}")
    print(f"Nodes and GPUs are for one trial. When they are done: {shlex.join(typed('sweep'))} rank runs/slurm-JOB_*")
    print("To prolong a sweep, ask for more --trials and submit --array=FIRST-LAST of the new ones.")


def local(plan: SweepPlan, folder: Path) -> None:
    """
    Raises:
        Interrupted: a signal has stopped the running trial, and no other is started.
        FailedTrialsError: all trials were tried, and some failed.
    """
    write_lines(plan, folder / "trials.txt")
    failed = 0
    with signals_to_trial() as relay:
        for number, trial in enumerate(plan.trials):
            run_dir = folder / f"trial-{number:03}"
            arguments = [*plan.shared, *trial, "--run.dir", str(run_dir)]
            print(f"trial {number} ({number + 1} of {len(plan.trials)}): {shlex.join(trial)}", flush=True)
            if is_finished(run_dir, resolve(arguments)):
                print("  has finished", flush=True)
            else:
                failed += not run_trial(arguments, run_dir, relay)
            relay.check()
    show_ranking([folder])
    if failed:
        raise FailedTrialsError(f"{failed} of {len(plan.trials)} trials failed; the same command tries these again")


def is_finished(run_dir: Path, config: "Config") -> bool:
    """Whether the folder holds just this run, from its first step to its last."""
    from biencoder.tracking.record import read_record

    try:
        record = read_record(run_dir)
    except ConfigError:
        return False
    # The record has what the model brought along: prompts where `auto` was asked for, its size where that was 0.
    ran, asked = record.config.model, config.model
    left_open = {"query_prompt": "auto", "document_prompt": "auto", "embedding_dim": 0}
    settled = {name: getattr(ran, name) for name, value in left_open.items() if getattr(asked, name) == value}
    return record.state == "finished" and record.config == replace(config, model=replace(asked, **settled))


class SignalRelay:
    """Passes signals on from the sweep to its running trial, which then saves and stops."""

    def __init__(self) -> None:
        self.trial: subprocess.Popen[bytes] | None = None
        self.received: signal.Signals | None = None

    def receive(self, number: int, _frame: object = None) -> None:
        self.received = self.received or signal.Signals(number)
        if self.trial:
            self.trial.terminate()

    def run(self, command: Sequence[str], output: Path) -> int:
        """The exit code of a command whose output is appended to a file."""
        # A session of its own: what the terminal sends on Ctrl-C would end the trial before it has saved.
        with output.open("ab") as file:
            self.trial = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        if self.received:  # just before there was a trial to hand it on to
            self.trial.terminate()
        return self.trial.wait()

    def check(self) -> None:
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received:
            raise Interrupted(f"{self.received.name}; started again, the sweep goes on")


@contextmanager
def signals_to_trial() -> Iterator[SignalRelay]:
    relay = SignalRelay()
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in wanted}
    try:
        for number, handler in handlers.items():
            if handler != signal.SIG_IGN:  # nohup, and shells for background jobs, have them ignored
                signal.signal(number, relay.receive)
        yield relay
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_trial(arguments: Sequence[str], run_dir: Path, relay: SignalRelay) -> bool:
    """Whether train.py has ended without an error; what it said is in output.txt, and in `failed` why it ended early."""
    from biencoder.training.sweep import FAILED

    failed, output = run_dir / FAILED, run_dir / "output.txt"
    run_dir.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    print(f"  its output goes to {output}", flush=True)
    code = relay.run([sys.executable, str(_TRAIN), *arguments], output)
    if code and not relay.received:
        *_, last_words = output.read_text(errors="replace").split("\n")[:-1] or [""]
        failed.write_text(f"exit code {code}: {last_words}\n")
        print(f"  failed, exit code {code}: {last_words}", flush=True)
    return code == 0


def show_ranking(folders: Sequence[Path]) -> None:
    """Print the table and the best trial's command; the table as CSV goes beside the runs."""
    from biencoder.tracking.console import fitted, plain_console
    from biencoder.training.sweep import command_line, find_runs, rank, ranking_table, write_ranking

    runs = find_runs(folders)
    trials = rank(runs)
    console = plain_console()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(fitted(ranking_table(trials), console))
    file = Path(os.path.commonpath([run.resolve().parent for run in runs])) / "ranking.csv"
    try:
        write_ranking(trials, file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    print(f"The table is in {file}.")
    best = trials[0]
    if best.config is None or best.validation is None:
        raise ConfigError("no trial has been measured on a validation split after its first epoch: there is no best one")
    if len({trial.data for trial in trials if trial.validation is not None}) > 1:
        print("Beware: these trials saw different data, so their numbers cannot be compared.")
    print(f"The best one again: {command_line(best.config)}")


def command() -> None:
    run_command(main)


if __name__ == "__main__":
    command()
