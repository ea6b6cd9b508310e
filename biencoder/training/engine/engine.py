"""The DeepSpeed engine behind four verbs: call it, `backward`, `step`, and read `report`."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from biencoder import environment
from biencoder.config.schema import TrainConfig
from biencoder.data.tokens import Batch, Packing
from biencoder.distributed.world import World
from biencoder.model.attention import use_blocks, use_gpu_kernels
from biencoder.model.bi_encoder import BiEncoder, PairClassifier, Scores, Sides, TripletBatch
from biencoder.model.packed import hindrance, pack
from biencoder.training.engine.gradient_norms import measure_together
from biencoder.training.engine.gradient_sums import sum_in_fp32
from biencoder.training.engine.interpolation import Interpolation
from biencoder.training.engine.optim import build_optimizer, schedule
from biencoder.training.engine.settings import Settings, import_deepspeed, precision_of
from biencoder.training.engine.state import EngineState, EngineTensors, Part, SavedTensors, Shapes
from biencoder.training.engine.stopwatch import Stopwatch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PASS_COST = {"cpu": 100.0, "cuda": 5000.0}
"""Tokens that train in the time of one further pass's overhead. cpu: measured with MiniLM; cuda: estimated from the number
of kernels that BERT base starts, at some 5 microseconds each."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf or NaN where a step overflowed."""
    clip_coef: float
    """Factor that clipping applied to the gradient, 1 where it did nothing."""
    lr: float
    loss_scale: float
    """1 unless the precision is fp16."""
    skipped_steps: int
    """Steps so far whose gradient was not finite, and which changed nothing."""
    forward_s: float
    """Seconds of this rank's forward passes since the last report."""


class Engine:
    """A model under DeepSpeed. Calls, `backward` and `step` are collective: every rank makes them equally often."""

    def __init__(
        self,
        model: BiEncoder,
        config: TrainConfig,
        settings: Settings,
        world: World,
        total_steps: int,
        *,
        always_packed: bool = False,
    ) -> None:
        """Args: always_packed: pack texts also where that is slow, on CPUs and in fp32; for tests."""
        deepspeed = import_deepspeed()
        self.model = model
        self.device = world.device
        self.lr_factor = 1.0
        """Factor on the whole schedule, below 1 after training went astray."""
        self._world = world
        self._config = config
        self._stage = settings["zero_optimization"].get("stage", 0)
        self.precision = precision_of(settings)
        self._schedule = schedule(config, total_steps)
        if world.device.type == "cpu":
            sum_in_fp32(model)
            use_blocks(model.encoders, _DTYPES[self.precision])
        else:
            use_gpu_kernels(model.encoders)
            torch.backends.cuda.matmul.allow_tf32 = self.precision != "fp32"  # who asks for fp32 gets it
        self.padded_because = "" if always_packed else self._hindrance()
        """Why texts are padded; empty where they are packed."""
        self.packing: Packing | None = None if self.padded_because else pack(model.encoders)
        """How texts are packed; None where they are padded."""
        with environment.local_rank_for_deepspeed(self.device.index):
            self._engine, _, _, _ = deepspeed.initialize(
                model=model, optimizer=build_optimizer(model, config), config=settings
            )
        if hasattr(self._engine.optimizer, "check_grad_overflow"):
            self._engine.optimizer.check_grad_overflow = True  # a gradient that is not finite changes nothing, in fp32 too
            measure_together(self._engine.optimizer)
        self._engine.train()  # pretrained encoders come in evaluation mode
        self._tensors = EngineTensors(self._engine, model, world)
        self._interpolation = Interpolation(model, config.pretrained_share, release=self._release_gathered)
        self._plain_norm: torch.Tensor | None = None
        self._lr = 0.0
        self._forward = Stopwatch(world.device)

    def _hindrance(self) -> str:
        if self._config.packing == "never":
            return "train.packing is never"
        return hindrance(self.model.encoders, self.device, _DTYPES[self.precision])

    @property
    def pass_cost(self) -> float:
        """What a further pass through the encoder within a forward costs, in tokens.

        Infinite under ZeRO-3, where every rank must make as many passes as the others.
        """
        return math.inf if self._stage == 3 else _PASS_COST.get(self.device.type, 0.0)

    def score(self, batch: TripletBatch) -> Scores:
        with self._forward.running():
            scores: Scores = self._engine(batch.to(self.device))
        return scores

    def interpolated(self) -> AbstractContextManager[None]:
        """Within this context the model is the one that is measured and saved, which `train.pretrained_share` makes another
        than the one that is trained. Every rank takes part."""
        return self._interpolation.in_place()

    @torch.no_grad()
    def encode(self, tokens: Batch) -> Sides:
        """Vectors of texts as both sides, without graph and without dropout."""
        self._engine.eval()
        sides: Sides = self._engine(tokens.to(self.device))
        self._engine.train()
        return sides

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        """Accumulate, or at the last micro-batch of a step: clip and update.

        A step whose gradient is not finite changes nothing on any rank: neither weights, nor moments, nor the schedule.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return
        self._lr = self._config.peak_lr * self.lr_factor * self._schedule(self.applied_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._lr * group.get("lr_factor", 1.0)
        if self._tensors.is_plain:
            # DeepSpeed tells no norm at stage 0 in fp32, and skips nothing; the gradients are averaged over the ranks here.
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self._plain_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)).float())
            if not torch.isfinite(self._plain_norm):
                self._engine.skipped_steps += 1
                with _without_step(self._engine.optimizer):
                    self._engine.step()
                return
        self._engine.step()

    @property
    def steps(self) -> int:
        """Optimizer steps so far, skipped ones included."""
        return int(self._engine.global_steps)

    @property
    def skipped_steps(self) -> int:
        """Steps so far whose gradient was not finite, and which changed nothing."""
        return int(self._engine.skipped_steps)

    @property
    def applied_steps(self) -> int:
        return self.steps - self.skipped_steps

    def report(self) -> StepReport:
        """What the last steps did. Reads values off the device: call it when they are logged, not at every step."""
        norm = self._grad_norm()
        limit = self._config.clip_norm
        clip = limit / norm if limit and math.isfinite(norm) and norm > limit else 1.0
        optimizer = self._engine.optimizer
        return StepReport(
            grad_norm=norm,
            clip_coef=clip,
            lr=self._lr,
            loss_scale=float(getattr(optimizer, "cur_scale", getattr(optimizer, "loss_scale", 1.0))),
            skipped_steps=self.skipped_steps,
            forward_s=self._forward.read(),
        )

    def _grad_norm(self) -> float:
        """Of the last step, which may have been before a state was loaded; NaN before the first."""
        norm = self._engine.get_global_grad_norm()
        return float(norm if norm is not None else self._plain_norm if self._plain_norm is not None else math.nan)

    def classifier_copy(self) -> PairClassifier:
        """The pair classifier in fp32 on the CPU, for work that rank 0 does alone. Every rank takes part."""
        twin = self.model.classifier.twin()  # a deep copy would carry ZeRO-3's hooks along
        with self._gathered(self.model.classifier.parameters()):
            twin.load_state_dict(self.model.classifier.state_dict())
        return twin.eval()

    def weights(self) -> dict[str, torch.Tensor] | None:
        """All weights of the model that is measured, in fp32 on the CPU, on rank 0; None elsewhere. Every rank takes part.

        Under ZeRO-3 no rank holds more than one whole tensor at a time, but for rank 0's copies.
        """
        weights = {}
        with self.interpolated():
            for name, weight in self.model.state_dict(keep_vars=True).items():
                with self._gathered([weight]):
                    if self._world.is_main:
                        weights[name] = weight.detach().to("cpu", torch.float32, copy=True)
        return weights if self._world.is_main else None

    def state(self) -> EngineState | None:
        """Everything that the next step depends on, on rank 0's CPU; None elsewhere. Every rank takes part."""
        self._engine.empty_partition_cache()
        tensors = self._tensors.read(has_moments=self.applied_steps > 0)
        return None if tensors is None else EngineState(*tensors, self.scalars())

    def own_parts(self) -> tuple[Iterator[Part], Shapes]:
        """This rank's parts of the tensors that `state` has, and the shapes of all. Every rank takes part."""
        self._engine.empty_partition_cache()
        has_moments = self.applied_steps > 0
        return self._tensors.own_parts(has_moments=has_moments), self._tensors.shapes(has_moments=has_moments)

    def load(self, saved: SavedTensors, scalars: Mapping[str, float]) -> None:
        """Go on from the tensors and the scalars of a state, on any number of ranks. Every rank takes part."""
        self._engine.global_steps, self._engine.skipped_steps = int(scalars["steps"]), int(scalars["skipped_steps"])
        self.lr_factor = scalars["lr_factor"]
        self._lr, self._plain_norm = scalars["lr"], torch.tensor(scalars["grad_norm"])
        for name, now in self._loss_scaler().items():
            setattr(self._engine.optimizer.loss_scaler, name, type(now)(scalars[name]))
        self._engine.empty_partition_cache()
        self._tensors.write(saved, moment_steps=self.applied_steps)

    def scalars(self) -> dict[str, float]:
        """What the next step depends on beside tensors."""
        scalars = {"steps": self.steps, "skipped_steps": self.skipped_steps, "lr_factor": self.lr_factor}
        return scalars | {"lr": self._lr, "grad_norm": self._grad_norm()} | self._loss_scaler()

    def _loss_scaler(self) -> dict[str, float]:
        """The variables of fp16's dynamic loss scaler; empty where nothing is scaled."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if not getattr(scaler, "dynamic", False):
            return {}
        return {name: getattr(scaler, name) for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")}

    def _release_gathered(self) -> None:
        """Give up what was gathered from the parts of all ranks, also the copy within a node that hpZ keeps."""
        self._engine.empty_partition_cache()
        if hasattr(self._engine.optimizer, "invalidate_secondary_tensor"):
            self._engine.optimizer.invalidate_secondary_tensor()

    def _gathered(self, weights: Iterable[torch.Tensor]) -> Any:
        """Within this context these are whole on every rank; only ZeRO-3 has work to do."""
        if self._stage < 3:
            return nullcontext()
        self._engine.empty_partition_cache()  # a forward without a backward leaves prefetched parameters in flight
        partitioned = [weight for weight in weights if hasattr(weight, "ds_id")]
        return import_deepspeed().zero.GatheredParameters(partitioned) if partitioned else nullcontext()


@contextmanager
def _without_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within this context the optimizer's step does nothing."""
    optimizer.step = lambda: None  # type: ignore[assignment,method-assign]  # on the object, hiding the class's
    try:
        yield
    finally:
        del optimizer.step
