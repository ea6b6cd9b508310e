"""Weights and moments out of a DeepSpeed engine of any stage and precision, and into one.

They leave it in fp32, whole through rank 0 or in the parts that the ranks hold, and come back whole, one at a time. So a
state fits any stage and any number of ranks. DeepSpeed's own checkpoints are pickles that fit the number of ranks they were
made on.

    ZeRO 3        parameters and their fp32 copies lie in parts on all ranks
    ZeRO 1 and 2  parameters are whole, their fp32 copies lie in parts on all ranks
    stage 0       16 bits: a whole fp32 copy beside each parameter; fp32: PyTorch's optimizer alone
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from biencoder.distributed.world import World
from biencoder.errors import ModelError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square."""
Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class Part(NamedTuple):
    """Some values of a tensor that one rank holds."""

    name: str
    start: int
    """Place of the first value in the flattened tensor."""
    values: torch.Tensor
    """(n,), of any precision, on any device."""


class SavedTensors(Protocol):
    """Where an engine's tensors come from."""

    @property
    def shapes(self) -> Shapes:
        """By name, the same on every rank."""

    def whole(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, on every rank. Every rank takes part, and asks for the same names in the same order."""


class FromMain:
    """Tensors that rank 0 has and hands to all."""

    def __init__(self, tensors: Tensors, world: World) -> None:
        """Args: tensors: empty on the other ranks."""
        self._tensors, self._world = tensors, world
        self.shapes: Shapes = world.on_main(lambda: {name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def whole(self, name: str) -> torch.Tensor:
        mine = self._tensors.get(name)
        return self._world.broadcast(torch.empty(self.shapes[name]) if mine is None else mine, source=0)


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
        for name, parameter, moment in self._named(has_moments=has_moments):
            self._keep(optimizer if moment else model, name, self._whole(parameter, moment))
        return (model, optimizer) if self._world.is_main else None

    @torch.no_grad()
    def own_parts(self, *, has_moments: bool) -> Iterator[Part]:
        """This rank's parts; those of all ranks together are every parameter and moment once. Nothing is sent or copied."""
        if has_moments:
            self._link_moments()
        for name, parameter, moment in self._named(has_moments=has_moments):
            start, values = self._own_part(parameter, moment)
            if len(values):
                yield Part(name, start, values)

    def shapes(self, *, has_moments: bool) -> Shapes:
        """Of every parameter and moment, by name."""
        named = self._named(has_moments=has_moments)
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter, _ in named}

    def _named(self, *, has_moments: bool) -> Iterator[tuple[str, Any, str | None]]:
        """The name of every parameter (moment: None) and of every moment, and what it is of."""
        for name, parameter in self._model.named_parameters():
            yield name, parameter, None
            for moment in MOMENTS if has_moments and parameter.requires_grad else ():
                yield f"{name}.{moment}", parameter, moment

    @torch.no_grad()
    def write(self, saved: SavedTensors, *, moment_steps: int) -> None:
        """Set parameters and moments.

        Args:
            moment_steps: updates that the moments stand for; 0 for none, as before the first step.

        Raises:
            ModelError: other tensors were saved than the model has; nothing was changed.
        """
        self._check_complete(saved.shapes, has_moments=moment_steps > 0)
        self._make_moments(moment_steps)
        for name, parameter, moment in self._named(has_moments=moment_steps > 0):
            self._set_whole(parameter, moment, saved.whole(name).to(parameter.device))

    def _check_complete(self, saved: Shapes, *, has_moments: bool) -> None:
        expected = self.shapes(has_moments=has_moments)
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

    def _own_part(self, parameter: Any, moment: str | None) -> tuple[int, torch.Tensor]:
        """Where this rank's part of a parameter's fp32 copy, or of one of its moments, begins, and its values."""
        rank = self._world.rank
        if hasattr(parameter, "ds_id"):
            start = rank * parameter.ds_tensor.numel()
            local = parameter.ds_tensor
            if parameter.requires_grad:
                local = parameter._z3_optimizer.get_local_fp32_param(parameter, moment)
            return start, local.flatten()[: max(0, parameter.ds_numel - start)]  # the last parts are padded
        if hasattr(parameter, "_hp_mapping"):
            mapping = parameter._hp_mapping
            if mapping is None:  # it lies in the parts of other ranks
                return 0, torch.empty(0)
            return mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment)
        whole = self._whole(parameter, moment)
        assert whole is not None
        start, stop = (whole.numel() * rank // self._world.size for rank in (rank, rank + 1))
        return start, whole.flatten()[start:stop]

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
