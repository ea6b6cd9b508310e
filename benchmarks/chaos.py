"""Kill a run again and again, restart it with the same command, and compare its end with an uninterrupted run's.

    python benchmarks/chaos.py                    # one process, 20 kills: about six minutes on two cores
    python benchmarks/chaos.py --ranks 2          # under torchrun; each time one rank, drawn at random, is killed

SIGKILL falls in turn into training, into the evaluation and the mining at an epoch's end, and into the writing of a
checkpoint, each time after a random delay. Prints kills, resumes, steps repeated, and the largest difference of any weight.

Another run meets the other troubles that it should outlast or refuse: a disk that is full while model/best is written (for
root: a small tmpfs), the process of Weights & Biases killed, an end on train.max_steps within an epoch, both logs torn,
another seed, and a second start in its folder. Prolonged, it is compared with the uninterrupted run as well.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from biencoder.tracking.names import measures_time

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "--config": "configs/quickstart.toml",
    "--model.max_length": "32",
    "--model.dropout": "0.1",
    "--train.epochs": "8",
    "--train.log_every": "1",
    "--train.warmup_ratio": "0",  # such a run may be prolonged
    "--mining.random_rate": "0.3",
    "--checkpoint.every_steps": "3",
    "--tracking.wandb": "disabled",
}
STEPS_PER_EPOCH = 9  # 144 training pairs in batches of 16


def start(run_dir: Path, ranks: int, **changed: str) -> subprocess.Popen[bytes]:
    """Args: changed: settings other than SETTINGS, `__` for the dot in their names."""
    return launch(run_dir, ranks, SETTINGS | {f"--{name.replace('__', '.')}": value for name, value in changed.items()})


def launch(run_dir: Path, ranks: int, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    arguments = [part for pair in settings.items() for part in pair]
    return subprocess.Popen(
        [sys.executable, *launcher, "launcher/train.py", *arguments, "--run.dir", str(run_dir)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def records(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that is being written
            found.append(json.loads(line))
    return found


def steps_done(run_dir: Path) -> int:
    return max((record["step"] for record in records(run_dir) if record["kind"] == "step"), default=0)


def kill_in(
    phase: str,
    run_dir: Path,
    process: subprocess.Popen[bytes],
    dice: random.Random,
    *,
    epoch_steps: int = STEPS_PER_EPOCH,
) -> bool:
    """Wait for the phase and a random moment in it, then kill a rank; False where the run ended before."""
    started, enough = psutil.Process(process.pid).create_time(), dice.randint(2, 5)
    while process.poll() is None:
        fresh = [r for r in records(run_dir) if r["time"] > started and r["kind"] != "checkpoint"]
        steps = [record["step"] for record in fresh if record["kind"] == "step"]
        last_measured = next((r["kind"] for r in reversed(fresh) if r["kind"] in ("step", "eval", "mine")), None)
        if {
            "training": len(steps) >= enough,
            "saving": bool(steps) and any((run_dir / "checkpoints").glob(".step-*.new")),
            "evaluation": bool(steps) and fresh[-1]["kind"] == "step" and steps[-1] % epoch_steps == 0,
            "mining": bool(steps) and last_measured == "eval",
        }[phase]:
            time.sleep(dice.uniform(0, 0.05 if phase == "mining" else 0.4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(process_ranks(process) or [process.pid]), signal.SIGKILL)
            return True
        time.sleep(0.01)
    return False


def process_ranks(process: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the ranks under a launcher; none for a run without one."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children()
        return [child.pid for child in children if "launcher/train.py" in " ".join(child.cmdline())]
    return []


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = process.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, err.decode()


class Troubled:
    """A run that meets troubles one after the other; each method says what came of one."""

    def __init__(self, run_dir: Path, ranks: int) -> None:
        self.run_dir, self._ranks = run_dir, ranks
        self._disk = run_dir / "model"
        self._disk.mkdir(parents=True)
        self._small = os.geteuid() == 0 and self._mount("size=8m")

    def full_disk_and_no_wandb(self) -> dict[str, str]:
        """To an end within the third epoch; room is made after the first evaluation, and W&B's process is killed then."""
        process = self._start(train__max_steps=str(2 * STEPS_PER_EPOCH + 2))
        self._wait_for_step(process, STEPS_PER_EPOCH + 1)
        tree = psutil.Process(process.pid).children(recursive=True)
        cores = [child for child in tree if child.name() == "wandb-core"]
        for core in cores:
            core.kill()
        if self._small:
            self._mount("remount,size=2g")
        _, err = self._end(process, expected=0)
        best = (self._disk / "best" / "model.safetensors").is_file()
        return {
            "full disk": outcome("the best model is kept in memory" in err and best)
            if self._small
            else "not tried: not root",
            "wandb-core killed": outcome(len(cores) == 1 and err.count("Weights & Biases failed") == 1),
        }

    def torn_logs(self) -> str:
        for name in ("metrics.jsonl", "run.jsonl"):
            file = self.run_dir / name
            os.truncate(file, file.stat().st_size - 20)
        return "cut 20 bytes short"

    def other_seed(self) -> str:
        _, err = self._end(self._start(run__seed="1"), expected=2)
        return outcome("run.seed was 0 and is 1" in err)

    def second_start(self) -> str:
        """While the run, prolonged, goes on to its end."""
        process = self._start()
        self._wait_for_step(process, 3 * STEPS_PER_EPOCH)
        _, refusal = self._end(self._start(), expected=2)
        self._end(process, expected=0)
        return outcome("is in use by process" in refusal)

    def weights(self) -> dict[str, Any]:
        found = load_file(self._disk / "last" / "model.safetensors")
        if self._small:
            subprocess.run(["umount", "--lazy", str(self._disk)], check=True)
        return dict(found)

    def _start(self, **changed: str) -> subprocess.Popen[bytes]:
        return start(self.run_dir, self._ranks, tracking__wandb="offline", **changed)

    def _wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        while process.poll() is None and steps_done(self.run_dir) < step:
            time.sleep(0.05)

    def _end(self, process: subprocess.Popen[bytes], *, expected: int) -> tuple[int, str]:
        code, err = finish(process)
        if code != expected and (self._ranks == 1 or not (code and expected)):  # torchrun has a code of its own
            raise SystemExit(f"a start of the troubled run ended with {code}, not with {expected}:\n{err}")
        return code, err

    def _mount(self, how: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(self._disk)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


def outcome(as_wanted: bool) -> str:
    return "as wanted" if as_wanted else "NOT AS WANTED"


def meet_troubles(run_dir: Path, ranks: int, straight: Path) -> dict[str, str]:
    run = Troubled(run_dir, ranks)
    found = run.full_disk_and_no_wandb()
    found["both logs torn"] = run.torn_logs()
    found["other seed refused"] = run.other_seed()
    found["second start refused"] = run.second_start()
    mine, theirs = run.weights(), load_file(straight / "model/last/model.safetensors")
    found["prolonged: equal weights"] = outcome(all(mine[name].equal(theirs[name]) for name in theirs))
    found["prolonged: same record"] = outcome(told(run_dir) == told(straight))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "chaos")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    straight, broken = arguments.folder / "straight", arguments.folder / "broken"
    code, err = finish(start(straight, arguments.ranks))
    if code:
        raise SystemExit(f"the uninterrupted run failed:\n{err}")

    dice, kills, repeated, attempts = random.Random(arguments.seed), Counter[str](), 0, 0
    phases = ("training", "saving", "evaluation", "mining")
    while sum(kills.values()) < arguments.kills:
        process = start(broken, arguments.ranks)
        attempts += 1
        phase = phases[sum(kills.values()) % len(phases)]
        killed = kill_in(phase, broken, process, dice)
        code, err = finish(process)
        if not killed:
            if code:
                raise SystemExit(f"start {attempts} failed:\n{err}")
            break  # it came to its end before the moment: a short run that was killed often enough
        kills[phase] += 1
        checkpoints = sorted((broken / "checkpoints").glob("step-*"))
        repeated += steps_done(broken) - (int(checkpoints[-1].name[5:]) if checkpoints else 0)
        print(f"kill {sum(kills.values())} in {phase} at step {steps_done(broken)}", file=sys.stderr)
    code, err = finish(start(broken, arguments.ranks))
    if code:
        raise SystemExit(f"the last start failed:\n{err}")

    a, b = (load_file(run / "model/last/model.safetensors") for run in (straight, broken))
    difference = max(float((a[name] - b[name]).abs().max()) for name in a)
    result = {
        "ranks": arguments.ranks,
        "kills": dict(kills),
        "resumes": sum(record.get("event") == "resumed" for record in records(broken)),
        "starts": attempts + 1,
        "steps": steps_done(straight),
        "steps_repeated": repeated,
        "largest_weight_difference": difference,
        "same_record": told(straight) == told(broken),
    } | meet_troubles(arguments.folder / "troubled", arguments.ranks, straight)
    table = Table(title=f"chaos, {arguments.ranks} rank(s)", box=None, show_header=False)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)
    out = Path(__file__).parent / "results" / f"chaos-{arguments.ranks}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    if "NOT AS WANTED" in result.values():
        raise SystemExit("a trouble was not met as it should be")


def told(run_dir: Path) -> list[dict[str, Any]]:
    """What a run has computed: every record without its times, and without the restarts."""
    return [
        {k: v for k, v in record.items() if k != "time" and not measures_time(k)}
        for record in records(run_dir)
        if record["kind"] != "checkpoint" and record.get("event") not in ("resumed", "model not written")
    ]


if __name__ == "__main__":
    main()
