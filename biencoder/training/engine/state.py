"""Weights and moments out of a DeepSpeed engine of any stage and precision, and into one.

They are whole and in fp32 on the way, so a state fits any stage and any number of ranks. DeepSpeed's own checkpoints are
pickles that fit the number of ranks they were made on.

    ZeRO 3        parameters and their fp32 copies lie in parts on all ranks
    ZeRO 1 and 2  parameters are whole, their fp32 copies lie in parts on all ranks
    stage 0       16 bits: a whole fp32 copy beside each parameter; fp32: PyTorch's optimizer alone
"""

from dataclasses import dataclass
from typing import Any

import torch

from biencoder.distributed.world import World
from biencoder.errors import ModelError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square."""
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine goes on from."""

    model: Tensors
    """Parameters by name."""
    optimizer: Tensors
    """Moments as `{parameter}.{moment}`; empty before the first step."""
    scalars: dict[str, float]


class EngineTensors:
    """The tensors of one engine. Reading and writing are collective: every rank takes part."""

    def __init__(self, engine: Any, model: torch.nn.Module, world: World) -> None:
        self._outer, self._model, self._world = engine.optimizer, model, world
        self.is_plain = isinstance(engine.optimizer, torch.optim.Optimizer)
        """Whether the optimizer is PyTorch's own, with nothing of DeepSpeed's around it."""
        self._inner: torch.optim.Optimizer = engine.optimizer if self.is_plain else engine.optimizer.optimizer
        self._inner.state.clear()  # DeepSpeed 0.19 takes an empty step at stage 0 in bf16, which Adam would count

    @torch.no_grad()
    def read(self, *, has_moments: bool) -> tuple[Tensors, Tensors] | None:
        """Parameters and moments on rank 0's CPU; None elsewhere."""
        if has_moments:
            self._link_moments()
        model: Tensors = {}
        optimizer: Tensors = {}
        for name, parameter in self._model.named_parameters():
            self._keep(model, name, self._whole(parameter, None))
            for moment in MOMENTS if has_moments and parameter.requires_grad else ():
                self._keep(optimizer, f"{name}.{moment}", self._whole(parameter, moment))
        return (model, optimizer) if self._world.is_main else None

    @torch.no_grad()
    def write(self, state: EngineState | None, *, moment_steps: int) -> None:
        """Set parameters and moments from rank 0's state.

        Args:
            moment_steps: updates that the moments stand for; 0 for none, as before the first step.

        Raises:
            ModelError: the state holds other tensors than the model has; nothing was changed.
        """
        tensors = state.model | state.optimizer if state else {}
        saved = self._world.on_main(lambda: {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        self._check_complete(saved, has_moments=moment_steps > 0)
        self._make_moments(moment_steps)
        for name, parameter in self._model.named_parameters():
            for moment in (None, *MOMENTS):
                full_name = f"{name}.{moment}" if moment else name
                if full_name in saved:
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    mine = tensors.get(full_name)
                    whole = self._world.broadcast(torch.empty(shape) if mine is None else mine, source=0)
                    self._set_whole(parameter, moment, whole.to(parameter.device))

    def _check_complete(self, saved: dict[str, tuple[int, ...]], *, has_moments: bool) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for name, parameter in self._model.named_parameters():
            moments = MOMENTS if has_moments and parameter.requires_grad else ()
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            expected |= dict.fromkeys([name, *(f"{name}.{moment}" for moment in moments)], shape)
        wrong = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
        if wrong:
            raise ModelError(
                f"the checkpoint is not of this model: {wrong[0]} is {saved.get(wrong[0], 'absent')} there and "
                f"{expected.get(wrong[0], 'absent')} here ({len(wrong)} differ); choose another run.dir to start anew"
            )

    def _keep(self, into: Tensors, name: str, whole: torch.Tensor | None) -> None:
        if self._world.is_main and whole is not None:
            into[name] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()

    def _whole(self, parameter: Any, moment: str | None) -> torch.Tensor | None:
        """A parameter's fp32 copy, or one of its moments."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # noqa: TID251 - this folder knows DeepSpeed

        whole: torch.Tensor
        if not parameter.requires_grad:
            with _gathered(parameter):
                whole = parameter.detach().clone()
            return whole
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
            whole = safe_get_full_optimizer_state(parameter, moment) if moment else safe_get_full_fp32_param(parameter)
            return whole
        master = self._master_of(parameter)
        return self._inner.state.get(master, {}).get(moment) if moment else master

    def _set_whole(self, parameter: Any, moment: str | None, whole: torch.Tensor) -> None:
        if hasattr(parameter, "ds_id"):
            if moment is None:
                with _gathered(parameter, modifier_rank=0):
                    if self._world.is_main:
                        parameter.data.copy_(whole)
            if parameter.requires_grad:
                part = _own_part(whole, parameter.ds_tensor.numel(), self._world.rank)
                parameter._z3_optimizer.set_local_hp_param(part, parameter, moment)
            return
        if moment is None:
            parameter.data.copy_(whole)
        if hasattr(parameter, "_hp_mapping"):
            parameter.set_full_hp_param(whole, moment)
        elif parameter.requires_grad:
            master = self._master_of(parameter)
            (self._inner.state[master][moment] if moment else master.data).copy_(whole)

    def _make_moments(self, steps: int) -> None:
        """Give the optimizer the moments that its first step would make, so that they can be set."""
        if not steps:
            self._inner.state.clear()
            return
        for master in self._masters():
            state = self._inner.state[master]
            if not state:
                state.update({moment: torch.zeros_like(master.data) for moment in MOMENTS})
            state["step"] = torch.tensor(float(steps), device=master.device)
        self._link_moments()

    def _link_moments(self) -> None:
        """Let ZeRO 1 and 2 find the moments of every parameter; DeepSpeed 0.19 does so for the first group only."""
        if hasattr(self._outer, "_hp_optimizer_states_linked"):
            self._outer._hp_optimizer_states_linked = False
            self._outer._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[torch.Tensor]:
        """What PyTorch's optimizer updates: parameters, their fp32 copies, or this rank's flat parts of those."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):  # ZeRO 3; ZeRO 1 and 2
            if hasattr(self._outer, name):
                return list(getattr(self._outer, name))
        return [master for group in self._inner.param_groups for master in group["params"]]

    def _master_of(self, parameter: torch.Tensor) -> torch.Tensor:
        """At stage 0: the fp32 copy of a parameter in 16 bits, or the parameter itself."""
        halves, masters = getattr(self._outer, "fp16_groups", []), getattr(self._outer, "fp32_groups", [])
        for half, full in zip(halves, masters, strict=True):
            for mine, master in zip(half, full, strict=True):
                if mine is parameter:
                    found: torch.Tensor = master
                    return found
        return parameter


def _gathered(parameter: torch.Tensor, **how: int) -> Any:
    """Within this context the parameter is whole on every rank."""
    import deepspeed  # noqa: TID251 - this folder knows DeepSpeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id"), **how)


def _own_part(whole: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """A rank's part of a flat parameter under ZeRO-3, where the last parts are padded with zeros."""
    part = whole.new_zeros(size)
    mine = whole.flatten()[rank * size : (rank + 1) * size]
    part[: len(mine)] = mine
    return part
