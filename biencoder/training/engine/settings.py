"""DeepSpeed's settings of a run: the user's JSON, with batch sizes, clipping and precision from the configuration.

A JSON that says otherwise is refused, so that every number has one owner.
"""

import json
import logging
import warnings
from typing import Any, get_args

import torch

from biencoder import environment
from biencoder.config.paths import find_file
from biencoder.config.schema import Config
from biencoder.errors import ConfigError
from biencoder.training.engine.precision import Precision

Settings = dict[str, Any]


def read_settings(config: Config, world_size: int, *, fastest: Precision = "fp32") -> Settings:
    """
    Args:
        fastest: the precision to take where neither configuration nor JSON names one; the same on all ranks.

    Raises:
        ConfigError: the file is missing or no JSON, sets what another key owns, or asks for what does not work.
    """
    name = f"deepspeed_config {config.deepspeed_config}"
    settings = _read_json(config.deepspeed_config)
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise ConfigError(f"{name} sets {key}, which train.* decides; remove it")
    settings |= _owned(settings, config, world_size)
    precision = _precision(settings, config, fastest)
    for other in ("bf16", "fp16"):
        settings[other] = settings.get(other, {}) | {"enabled": precision == other}
    # DeepSpeed's own timer would wait for the GPU in every forward and every step.
    settings.setdefault("timers", {}).setdefault("throughput", {"enabled": False})
    zero = settings.setdefault("zero_optimization", {"stage": 0})
    _check_support(precision, zero.get("stage", 0), name)
    if "offload_optimizer" in zero:
        settings["zero_force_ds_cpu_optimizer"] = False  # our torch optimizer runs on the CPU as well
    return settings


def precision_of(settings: Settings) -> Precision:
    """What DeepSpeed trains in, given these settings."""
    for precision in ("fp16", "bf16"):
        if settings.get(precision, {}).get("enabled") is True:
            return precision
    return "fp32"


def _read_json(file: str) -> Settings:
    path = find_file(file)
    settings: Any
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        stem, *rest = path.stem.split("_")
        if find_file(f"ds_configs/{stem}.json").exists() and rest and rest[0] in ("auto", *get_args(Precision)):
            new = "_".join([stem, *rest[1:]])
            raise ConfigError(
                f"deepspeed_config {file} has become two keys: set deepspeed_config = ds_configs/{new}.json and "
                f"train.precision = {rest[0]}"
            ) from None
        raise ConfigError(f"deepspeed_config {file} cannot be read: No such file or directory") from None
    except OSError as error:
        raise ConfigError(f"deepspeed_config {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed_config {file} is not valid JSON: {error}") from None
    whole = isinstance(settings, dict)
    if not whole or not all(isinstance(settings.get(part, {}), dict) for part in ("zero_optimization", "bf16", "fp16")):
        raise ConfigError(
            f"deepspeed_config {file} must hold a JSON object, and zero_optimization, bf16 and fp16 in it as well"
        )
    checked: Settings = settings
    return checked


def _owned(settings: Settings, config: Config, world_size: int) -> Settings:
    """What the configuration decides, after a look at what the JSON says."""
    train = config.train
    owners = {
        "train_batch_size": ("train.global_batch_size", train.global_batch_size),
        "train_micro_batch_size_per_gpu": ("train.micro_batch_size", train.micro_batch(world_size)),
        "gradient_accumulation_steps": ("train.micro_batch_size", train.accumulation(world_size)),
        "gradient_clipping": ("train.clip_norm", train.clip_norm),
    }
    for key, (owner, value) in owners.items():
        if settings.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"deepspeed_config {config.deepspeed_config} sets {key} to {settings[key]}, but {owner} makes it {value}; "
                'write "auto" there'
            )
    return {key: value for key, (_, value) in owners.items()}


def _precision(settings: Settings, config: Config, fastest: Precision) -> Precision:
    """train.precision, which the JSON may name as well but not contradict."""
    stated = {name: settings.get(name, {}).get("enabled", "auto") for name in ("bf16", "fp16")}
    enabled = [name for name, value in stated.items() if value is True]
    wanted = config.train.precision
    file = f"deepspeed_config {config.deepspeed_config}"
    if len(enabled) == 2:
        raise ConfigError(f"{file} enables both bf16 and fp16; leave one of them out")
    if wanted == "auto":
        if enabled:
            return enabled[0]  # type: ignore[return-value]  # one of the two
        return "fp32" if stated.get(fastest) is False else fastest
    if enabled not in ([], [wanted]):
        raise ConfigError(
            f"{file} enables {enabled[0]}, but train.precision is {wanted}; set train.precision = {enabled[0]}, or remove "
            f"{enabled[0]} from the file"
        )
    if stated.get(wanted) is False:
        raise ConfigError(f"{file} forbids {wanted}, but train.precision is {wanted}; remove {wanted} from the file")
    return wanted


def _check_support(precision: Precision, stage: int, file: str) -> None:
    if precision == "fp16" and stage == 0:
        raise ConfigError(
            f"{file} asks for ZeRO stage 0, where DeepSpeed in fp16 applies updates divided by the loss scale; use stage 1 "
            "(same memory for one rank), or set train.precision = bf16"
        )
    device = import_deepspeed().get_accelerator()
    supported = {"fp16": device.is_fp16_supported, "bf16": device.is_bf16_supported}
    if precision in supported and not supported[precision]():
        raise ConfigError(
            f"this machine's {device.device_name()} does not compute in {precision}; set train.precision = auto or fp32"
        )


def import_deepspeed() -> Any:
    """DeepSpeed, imported without its chatter, and without the C++ compilation that it would start on a CPU."""
    if not torch.cuda.is_available():
        environment.set_default("DS_ACCELERATOR", "cpu")
    # DeepSpeed 0.19 calls collectives by names that newer PyTorch renames; both work.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed  # noqa: TID251 - this folder knows DeepSpeed
    from deepspeed.ops import __compatible_ops__  # noqa: TID251 - this folder knows DeepSpeed
    from deepspeed.runtime import compiler  # noqa: TID251 - this folder knows DeepSpeed
    from deepspeed.utils import groups  # noqa: TID251 - this folder knows DeepSpeed

    groups._release_process_group_references()  # those of an earlier run in this process have been destroyed
    __compatible_ops__["deepspeed_shm_comm"] = False  # compiled with g++ for a minute at first use, to little effect
    # Every engine imports the Muon optimizer, which is not used here and would load PyTorch's compiler for seconds.
    compiler.compile = lambda: compiler.dummy_decorator
    deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed
