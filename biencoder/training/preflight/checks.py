"""What can be known about a job before it trains: its ranks, what they run, how they talk, what they see, what they have.

    rows = preflight(config, world)     # every rank takes part, and gets the same rows
    world.together(lambda: raise_failed(rows))

A check has two halves. Every rank looks for a fact of its own, and a failure there is a fact as well, so that no rank waits
for one that gave up or got stuck; then all ranks judge the same facts (preflight_rows.py). Nothing is trained, nothing is
left behind.
"""

import contextlib
import hashlib
import importlib
import os
import platform
import secrets
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from biencoder import __version__, environment
from biencoder.config.paths import PROJECT_ROOT
from biencoder.config.schema import Config, ModelConfig
from biencoder.data.records import Findings
from biencoder.distributed.file_server import appears
from biencoder.distributed.world import World
from biencoder.errors import BiencoderError, ConfigError
from biencoder.model.bi_encoder import build_model
from biencoder.training.engine.memory import (
    available_bytes,
    bucket_bytes,
    check_mining_memory,
    interpolation_bytes,
    mining_bytes,
    offloaded_bytes,
    state_bytes,
)
from biencoder.training.engine.precision import precision_of_auto
from biencoder.training.engine.settings import Settings, precision_of
from biencoder.training.plan import read_configuration, read_data, read_model
from biencoder.training.preflight.judgements import (
    CheckResult,
    Device,
    Judgement,
    Memory,
    failures_by_rank,
    judge_bandwidth,
    judge_clocks,
    judge_devices,
    judge_disk,
    judge_equal,
    judge_memory,
    judge_round_trip,
    judge_shared,
)
from biencoder.training.preflight.network import time_all_reduce
from biencoder.training.recovery.run_folder import run_folder
from biencoder.training.same_input import configuration_facts, settings_digest, tokenizer_digest, weights_digest

T = TypeVar("T")

_SMALL_BYTES, _BULK_BYTES = 4, 64 * 2**20
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(slots=True)
class _Job:
    """What this rank has learnt about the job; equal on all ranks once the checks of its input have passed."""

    settings: Settings = field(default_factory=dict)
    num_texts: int = 0
    hidden: int = 0
    num_parameters: int = 0
    texts: Sequence[str] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    """With the model's prompts."""
    notices: str = ""
    """What is to be said about the pretrained model."""


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str


class _Checks:
    """The rows so far."""

    def __init__(self, world: World, *, limit_s: float) -> None:
        self.rows: list[CheckResult] = []
        self.limit_s = limit_s
        self._world = world

    def check(
        self, name: str, look: Callable[[], T], judge: Callable[[list[T]], Judgement], *, with_others: bool = False
    ) -> bool:
        """Look on every rank and judge what all have found; whether nothing failed. Every rank takes part.

        Args:
            with_others: the look needs the other ranks, and sees to it that it ends; else it has `limit_s` seconds.
        """
        self._world.doing(f"preflight: {name}")
        facts = self._world.all_gather_object(_attempt(look if with_others else lambda: in_time(look, self.limit_s)))
        failures = {rank: fact.message for rank, fact in enumerate(facts) if isinstance(fact, _Failure)}
        if failures:
            return self.add(name, ("fail", failures_by_rank(failures, self._world.hosts)))
        return self.add(name, judge([fact for fact in facts if not isinstance(fact, _Failure)]))

    def add(self, name: str, judgement: Judgement) -> bool:
        self.rows.append(CheckResult(name, *judgement))
        return judgement[0] != "fail"


def preflight(config: Config, world: World) -> list[CheckResult]:
    """All checks; the rows are the same on every rank. Every rank takes part."""
    checks, hosts, job = _Checks(world, limit_s=config.distributed.timeout_s), world.hosts, _Job()
    checks.check("ranks", lambda: _device(world), lambda devices: judge_devices(devices, hosts))
    checks.check("versions", _versions, lambda versions: judge_equal(versions, hosts, summary=_shown(versions[0])))
    _check_collectives(checks, world)
    checks.check("clocks", lambda: _clock(world), lambda clocks: judge_clocks(clocks, hosts), with_others=True)
    _check_shared_filesystem(checks, config, world)
    if _check_inputs(checks, config, world, job):
        _check_room(checks, replace(config, model=job.model), world, job)
    else:
        for name in ("memory", "disk"):
            checks.add(name, ("warn", "not judged: it takes a valid configuration, the data and the model"))
    return checks.rows


def raise_failed(rows: Sequence[CheckResult]) -> None:
    """Raise one ConfigError that lists the checks that failed, if any did."""
    failed = [f"{row.name} ({row.finding})" for row in rows if row.verdict == "fail"]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(rows)} checks failed: {'; '.join(failed)}")


# The checks: every rank takes part in each.


def _check_collectives(checks: _Checks, world: World) -> None:
    if world.size == 1:
        for name in ("round trip", "bandwidth"):
            checks.add(name, ("ok", "one rank: nothing to measure"))
        return

    def round_trips() -> tuple[float, float]:
        training = time_all_reduce(world, _SMALL_BYTES, repeats=21, control=False)
        return statistics.median(training), statistics.median(
            time_all_reduce(world, _SMALL_BYTES, repeats=21, control=True)
        )

    def bulk() -> float:
        return statistics.median(time_all_reduce(world, _BULK_BYTES, repeats=3, control=False))

    library = "nccl" if world.device.type == "cuda" else "gloo"
    if checks.check("round trip", round_trips, lambda seconds: judge_round_trip(seconds, library), with_others=True):
        checks.check("bandwidth", bulk, lambda seconds: judge_bandwidth(seconds, num_bytes=_BULK_BYTES), with_others=True)
    else:  # the ranks may have stopped at different sums: the next one would only hang as well
        checks.add("bandwidth", ("warn", "not measured: a small sum did not come through"))


def _check_shared_filesystem(checks: _Checks, config: Config, world: World) -> None:
    word = world.on_main(lambda: secrets.token_hex(8))

    def write_word() -> Path:
        file = _word_file(config, word)
        try:
            file.write_text(word, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{file.parent}, where run.dir would be, cannot be written: {error.strerror}") from None
        return file

    def look() -> tuple[Path, bool]:
        file = world.on_main(lambda: in_time(write_word, checks.limit_s))  # raises on all ranks or on none
        return file.parent, in_time(lambda: appears(lambda: file.read_bytes() == word.encode()), checks.limit_s)

    def judge(seen: list[tuple[Path, bool]]) -> Judgement:
        return judge_shared([sees for _, sees in seen], world.hosts, folder=seen[0][0], sharded=config.checkpoint.sharded)

    try:
        checks.check("shared filesystem", look, judge, with_others=True)
    finally:
        if world.is_main:  # all ranks have looked: their facts are gathered
            with contextlib.suppress(OSError, ConfigError):  # where it could not be written, it cannot be removed
                in_time(lambda: _word_file(config, word).unlink(), checks.limit_s)


def _check_inputs(checks: _Checks, config: Config, world: World, job: _Job) -> bool:
    """Whether configuration, data and model can be used, and are the same on all ranks; fills in the job."""
    train = config.train

    def configuration() -> dict[str, str]:
        fastest = precision_of_auto(config.train.precision, world.device)
        job.settings = read_configuration(config, world.size, fastest=fastest)
        return configuration_facts(config) | {"the content of deepspeed_config": settings_digest(job.settings)}

    def steps() -> str:
        per_step = f"{world.size} x {train.accumulation(world.size)} x {train.micro_batch(world.size)}"
        stage, precision = _stage(job.settings), precision_of(job.settings)
        return (
            f"ranks x accumulation x micro-batch: {per_step} = {train.global_batch_size} triplets; ZeRO stage {stage} in "
            f"{precision}"
        )

    def data() -> dict[str, str]:
        dataset = read_data(config)
        job.texts = dataset.texts
        job.num_texts = len(dataset.splits["training"].text_ids)
        pairs = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
        return {"pairs": pairs, "fingerprint": dataset.fingerprint[:12]}

    def model() -> dict[str, str]:
        pretrained = read_model(config, job.texts, Findings())
        job.notices = "".join(f"; {notice}" for notice in pretrained.notices)
        job.hidden, job.model = pretrained.encoder.config.hidden_size, pretrained.settled(config.model)
        config.truncations(job.model.embedding_dim)
        parameters = build_model(job.model, pretrained, seed=config.run.seed).parameters()
        job.num_parameters = sum(parameter.numel() for parameter in parameters)
        digests = {"tokenizer": tokenizer_digest(pretrained.tokenizer), "weights": weights_digest(pretrained.weights)}
        return {"parameters": f"{job.num_parameters:,}", **digests}

    passed = [
        checks.check("configuration", configuration, lambda facts: judge_equal(facts, world.hosts, summary=steps())),
        checks.check("data", data, lambda facts: judge_equal(facts, world.hosts, summary=_shown(facts[0]))),
        checks.check("model", model, lambda facts: judge_equal(facts, world.hosts, summary=_shown(facts[0]) + job.notices)),
    ]
    return all(passed)


def _check_room(checks: _Checks, config: Config, world: World, job: _Job) -> None:
    mining = mining_bytes(config, num_texts=job.num_texts, hidden=job.hidden, world_size=world.size)
    state = state_bytes(job.settings, job.num_parameters, num_ranks=world.size) + bucket_bytes(job.settings)
    offloaded = offloaded_bytes(job.settings, job.num_parameters, num_ranks=world.size)
    share = config.train.pretrained_share
    offloaded += interpolation_bytes(job.settings, job.num_parameters, share=share, num_ranks=world.size)

    def memory() -> Memory:
        refusal = _attempt(lambda: check_mining_memory(config, world, num_texts=job.num_texts, hidden=job.hidden))
        gpu = torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else None
        share = available_bytes() // world.ranks_on_this_host
        return Memory(share, gpu, refusal.message if isinstance(refusal, _Failure) else "")

    def disk() -> tuple[Path, int]:
        folder = _nearest_folder(config)
        return folder, shutil.disk_usage(folder).free

    def judge(memories: list[Memory]) -> Judgement:
        return judge_memory(
            memories, world.hosts, state=state, offloaded=offloaded, mining=mining, sharded=config.mining.sharded
        )

    def judge_rank_0(disks: list[tuple[Path, int]]) -> Judgement:
        folder, free = disks[0]
        return judge_disk(folder, free, num_parameters=job.num_parameters, keep=config.checkpoint.keep)

    checks.check("memory", memory, judge)
    # Only rank 0 writes to the disk.
    checks.check("disk", lambda: world.on_main(lambda: in_time(disk, checks.limit_s)), judge_rank_0, with_others=True)


# What a rank finds out about itself.


def _device(world: World) -> Device:
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        return Device(properties.name, properties.total_memory)
    return Device("CPU", 0, torch.__version__ if _NVIDIA_DRIVER.exists() and not environment.gpus_are_hidden() else "")


def _versions() -> dict[str, str]:
    """Of what computes; importing it shows that it can be loaded, which a missing system library prevents."""
    modules = {
        "torch": "torch",
        "transformers": "transformers",
        "faiss": "faiss",
        "numpy": "numpy",
        "scikit-learn": "sklearn",
    }
    versions = {name: str(importlib.import_module(module).__version__) for name, module in modules.items()}
    others = {"deepspeed": version("deepspeed"), "biencoder": __version__}
    return {"python": platform.python_version(), **versions, **others, "code": _code()[:12]}


def _code() -> str:
    """SHA-256 over names and contents of the program's own files."""
    total = hashlib.sha256()
    for package in ("biencoder", "launcher"):
        for file in sorted((PROJECT_ROOT / package).rglob("*.py")):
            content = file.read_bytes()
            total.update(f"{file.relative_to(PROJECT_ROOT).as_posix()} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _clock(world: World) -> float:
    """Seconds since 1970 on this host, at a moment that all ranks share within milliseconds."""
    world.all_gather_object(None)  # nobody leaves it before everybody is there
    return time.time()


def _nearest_folder(config: Config) -> Path:
    """The deepest folder on the way to run.dir that is there, run.dir included."""
    folder = run_folder(config).absolute()
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))


def _word_file(config: Config, word: str) -> Path:
    return _nearest_folder(config) / f".preflight-{word}"


def _stage(settings: Settings) -> int:
    return int(settings["zero_optimization"].get("stage", 0))


def _shown(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def in_time(work: Callable[[], T], limit_s: float) -> T:
    """The result of `work`, which is left behind in a thread if it gets stuck, say on a file server that does not answer.

    Raises:
        ConfigError: it has not ended within the limit; whatever `work` itself raises.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        if outcome.done():
            raise  # of the work itself
        raise ConfigError(f"no end after {limit_s:g} s; is a file server or a download stuck?") from None


def _attempt(look: Callable[[], T]) -> T | _Failure:
    try:
        return look()
    except BiencoderError as error:
        return _Failure(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a row, and the other ranks do not wait
        return _Failure(f"{type(error).__name__}: {' '.join(str(error).split())}")
