"""The steps of benchmarks/gpu.py, which starts each as a process. The last line that one prints is what it found, as JSON.

A: heads, T: tokens, D: dimension of a head, U: texts, L: padded width.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from biencoder.config.paths import PROJECT_ROOT
from biencoder.config.schema import ModelConfig
from biencoder.data.tokens import TokenizedTexts, tokenize
from biencoder.model.attention import use_gpu_kernels
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.packed import attend, hindrance, pack
from biencoder.model.pretrained import load_pretrained
from biencoder.retrieval.trained_model import TrainedModel
from biencoder.training.engine.engine import Engine
from biencoder.training.loop import Trainer
from biencoder.training.recovery.resume import Recovery
from launcher import train

LENGTHS = (4, 75, 94, 109, 123, 135, 147, 160, 173, 185, 198, 212, 227, 244, 262, 283, 306, 338, 383, 460, 512)
"""Tokens of ArguAna's training arguments as MiniLM's tokenizer counts them: twentieths of the distribution, cut at 512."""
Found = dict[str, Any]


@dataclass(frozen=True)
class Job:
    folder: Path
    dry_run: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry_run else torch.bfloat16

    @property
    def model(self) -> str:
        return str(self.folder / "bert")

    @property
    def data(self) -> str:
        return str(self.folder / "pairs.jsonl")

    def pick(self, full: int, small: int) -> int:
        return small if self.dry_run else full

    def training(self, run: str, *more: str, steps: int, precision: str = "fp32", batch: int | None = None) -> list[str]:
        """The arguments of a run of so many steps."""
        size = self.pick(64, 4) if batch is None else batch
        return (
            f"""--config configs/triplets.toml --data.root {self.data} --run.dir {self.folder / run} --run.resume auto
            --tracking.wandb disabled --tracking.report false --model.name {self.model} --model.pooling mean
            --model.max_length {self.pick(256, 48)} --train.global_batch_size {size} --train.max_steps {steps}
            --train.log_every 1 --train.schedule constant --train.warmup_ratio 0 --train.precision {precision}
            --checkpoint.every_steps 4""".split()
            + list(more)
        )

    def losses(self, run: str) -> dict[int, float]:
        """Loss of each step of a run."""
        lines = map(json.loads, (self.folder / run / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["train/loss"] for line in lines if line["kind"] == "step"}

    def texts(self, count: int) -> list[str]:
        rng = np.random.default_rng(0)
        tokens = np.interp(rng.random(count), np.linspace(0, 1, len(LENGTHS)), LENGTHS).astype(int)
        words = [f"w{number}" for number in range(self.pick(30_000, 200))]
        return [" ".join(rng.choice(words, length - 2)) for length in tokens]

    def wait(self) -> None:
        if not self.dry_run:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Of one call, the least of several."""
        found = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found)


def inputs(job: Job) -> Found:
    """A BERT base with random weights, a tokenizer of 30,000 words, and pairs of synthetic texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *(f"w{number}" for number in range(job.pick(30_000, 200)))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    made: Any = PreTrainedTokenizerFast
    made(tokenizer_object=backend, model_max_length=512, **names).save_pretrained(job.model)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **(shape if job.dry_run else {}))).save_pretrained(job.model)
    texts = job.texts(2 * job.pick(1500, 32))
    for number, (point, counter) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        row = {"split": "validation" if number % 8 == 0 else "train", "point": point, "counter": counter}
        with Path(job.data).open("a") as file:
            file.write(json.dumps(row) + "\n")
    return {"texts": len(texts), "tokens a text": float(np.mean([len(text.split()) + 2 for text in texts]))}


def attention(job: Job) -> Found:
    """Milliseconds of attention, forward and backward, on shapes that are new: the first time and again; padded, with
    cuDNN's kernel on and off, and packed."""
    found: Found = {}
    heads, size = job.pick(12, 2), job.pick(64, 16)
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first, again = [], []
        for U, L in ((job.pick(96, 2), job.pick(200 + 8 * number + 4 * cudnn, 16 + number)) for number in range(3)):
            state = torch.randn(3, U, heads, L, size, device=job.device, dtype=job.dtype, requires_grad=True)
            mask = (torch.arange(L, device=job.device) < torch.linspace(1, L, U, device=job.device)[:, None])[:, None, None]

            def padded(state: torch.Tensor = state, mask: torch.Tensor = mask) -> None:
                query, key, value = state
                backward(torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

            first.append(job.seconds(padded, 1))
            again.append(job.seconds(padded))
        name = "padded, cuDNN on" if cudnn else "padded, cuDNN off"
        found |= {f"{name}, first ms": 1e3 * float(np.mean(first)), f"{name}, again ms": 1e3 * float(np.mean(again))}
    lengths = torch.linspace(1, job.pick(216, 18), job.pick(96, 2)).int()
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(job.device)
    longest, T = int(lengths.max()), int(lengths.sum())
    state = torch.randn(3, 1, heads, T, size, device=job.device, dtype=job.dtype, requires_grad=True)

    def packed() -> None:
        query, key, value = state
        module = torch.nn.Module()
        backward(attend(module, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=longest)[0])

    return found | {"packed, first ms": 1e3 * job.seconds(packed, 1), "packed, again ms": 1e3 * job.seconds(packed)}


def backward(out: torch.Tensor) -> None:
    torch.autograd.backward(out.sum())


def unit_tests(job: Job) -> Found:
    """Unit tests with the GPU hidden, and those of tests/gpu with it."""
    subjects = ["gradient_norms"] if job.dry_run else ["gpu_rules", "gradient_norms", "packed", "model"]
    hidden = pytest_says([f"tests/unit/test_{subject}.py" for subject in subjects], "0")
    return {"hidden": hidden, "on the GPU": pytest_says(["tests/gpu"], "0" if job.dry_run else "1")}


def pytest_says(arguments: list[str], on_gpu: str) -> str:
    environment = {**os.environ, "TEST_ON_GPU": on_gpu}  # noqa: TID251 - of a child
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return run_child(command, environment).stdout.strip().splitlines()[-1]


def run_child(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it at the project's root; its error in one line where it fails."""
    ended = subprocess.run(command, check=False, cwd=PROJECT_ROOT, capture_output=True, text=True, env=environment)
    if ended.returncode:
        lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
        raise SystemExit(" / ".join(lines[-2:]))
    return ended


def preflight(job: Job) -> Found:
    """What the checks of a job of this size say."""
    ended = run_child([sys.executable, "launcher/train.py", *job.training("preflight", steps=8), "--preflight"])
    words = ended.stdout.split()
    return {verdict: words.count(verdict) for verdict in ("ok", "warn", "fail")}


def fp32_as_on_a_cpu(job: Job) -> Found:
    """Losses of five steps in fp32 on both: they differ by at most 1e-3."""
    command = [sys.executable, "launcher/train.py"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "DS_ACCELERATOR": "cpu"}  # noqa: TID251 - of a child
    run_child([*command, *job.training("fp32", steps=5, batch=4)])
    run_child([*command, *job.training("fp32-cpu", steps=5, batch=4)], hidden)
    ours, theirs = job.losses("fp32"), job.losses("fp32-cpu")
    difference = max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs)
    return {"largest relative difference": difference, "within 1e-3": difference <= 1e-3}


def precisions(job: Job) -> Found:
    """Four steps in each precision and stage, a checkpoint, and four more from it."""
    modes = (
        ["zero1 fp32"] if job.dry_run else ["zero1 bf16", "zero1 fp16", "zero2 bf16", "zero3 bf16", "zero2_offload bf16"]
    )
    found: Found = {}
    for mode in modes:
        file, precision = mode.split()
        more = ("--deepspeed_config", f"ds_configs/{file}.json")
        try:
            for steps in (4, 8):
                with silent():
                    train.main(job.training(mode.replace(" ", "-"), *more, steps=steps, precision=precision))
            losses = job.losses(mode.replace(" ", "-"))
            found[mode] = f"{losses[1]:.3f} to {losses[max(losses)]:.3f} in {len(losses)} steps"
        except BaseException as error:  # noqa: BLE001 - whatever one mode does, the next one follows
            found[mode] = f"failed: {' '.join(str(error).split())[:160]}"
    return found


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What the program prints goes to stderr: stdout is for what a step finds."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def out_of_memory(job: Job) -> Found:
    """With 4 % of the memory, or in a dry run where more than two triplets count as too many: the run starts again by
    itself with smaller micro-batches, in this very script, and ends."""
    if job.dry_run:
        score = Engine.score

        def cramped(self: Engine, batch: Any) -> Any:
            if len(batch.point_row_B) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. In a dry run")
            return score(self, batch)

        Engine.score = cramped  # type: ignore[method-assign]
    else:
        torch.cuda.set_per_process_memory_fraction(0.04)
    with silent():
        train.main(job.training("oom", steps=4, precision="fp32" if job.dry_run else "bf16"))
    lines = [json.loads(line) for line in (job.folder / "oom" / "run.jsonl").read_text().splitlines()]
    bounds = [line["micro_batch_bound"] for line in lines if "micro_batch_bound" in line]
    return {"steps": len(job.losses("oom")), "micro-batches that were bounds": str(bounds)}


def waits(job: Job) -> Found:
    """Of five steps of the training loop: kernels, milliseconds of them, and how often the program waits for the GPU."""
    kinds = [ProfilerActivity.CPU if job.dry_run else ProfilerActivity.CUDA]
    found: Found = {}

    def five_steps(self: Trainer) -> None:
        split = self.step.split
        negative_text_PK = np.roll(split.counter_text_P, 1)[:, None]
        for number in range(8):
            batch = self.step.batch(np.arange(job.pick(64, 4)) + number, negative_text_PK)
            if number < 3:
                self.step.train(batch, number)
                continue
            with warnings.catch_warnings(record=True) as seen, profile(activities=kinds) as taken:
                warnings.simplefilter("always")
                if not job.dry_run:
                    torch.cuda.set_sync_debug_mode("warn")
                self.step.train(batch, number)
                if not job.dry_run:
                    torch.cuda.set_sync_debug_mode("default")
                job.wait()
            events = taken.key_averages()
            spent = [event.self_cpu_time_total if job.dry_run else event.self_device_time_total for event in events]
            found.setdefault("kernels", []).append(sum(event.count for event in events))
            found.setdefault("ms", []).append(round(sum(spent) / 1e3, 1))
            found.setdefault("waits", []).append(sum("synchroniz" in str(warning.message) for warning in seen))

    Trainer.fit = five_steps  # type: ignore[method-assign]
    Recovery.save = lambda self: None  # type: ignore[method-assign]
    with silent():
        train.main(job.training("waits", steps=8, precision="fp32" if job.dry_run else "bf16"))
    return found


def tokens_of(job: Job, count: int) -> tuple[BiEncoder, TokenizedTexts]:
    config = ModelConfig(name=job.model, max_length=job.pick(256, 48), dropout=0.0, pooling="mean", embedding_dim=0)
    pretrained = load_pretrained(config)
    model = build_model(config, pretrained, seed=0).to(job.device, job.dtype).eval()
    return model, tokenize(job.texts(count), pretrained.tokenizer, max_length=config.max_length)


def packed(job: Job) -> Found:
    """Packed texts against padded ones: difference of vectors and gradients, and milliseconds forward and backward, also
    of the compiled encoder."""
    count = job.pick(192, 6)
    model, tokens = tokens_of(job, count)
    every = np.argsort(-tokens.lengths(np.arange(count)))
    reason = hindrance(model.encoders, job.device, job.dtype)
    if not job.dry_run:
        use_gpu_kernels(model.encoders)
    padded = tokens.batch(every).to(job.device)

    def pass_of(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        out = model(batch).query.embedding
        out.float().square().mean().backward()
        return out.detach().float(), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    expected, padded_s = pass_of(padded), job.seconds(lambda: pass_of(padded))
    if reason and not job.dry_run:
        return {"padded ms": 1e3 * padded_s, "not packed": reason}
    row = tokens.packed(every, pack(model.encoders)).to(job.device)
    got, packed_s = pass_of(row), job.seconds(lambda: pass_of(row))
    away = [((one - other).norm() / other.norm()).item() for one, other in zip(got, expected, strict=True)]
    found: Found = {"padded ms": 1e3 * padded_s, "packed ms": 1e3 * packed_s, "vectors": away[0], "gradients": away[1]}
    encoder = model.encoders[0]
    encoder.forward = torch.compile(encoder.forward, dynamic=True, backend="eager" if job.dry_run else "inductor")
    pass_of(row)
    return found | {"compiled ms": 1e3 * job.seconds(lambda: pass_of(row))}


def training(job: Job) -> Found:
    """Steps of the training loop with ArguAna's lengths, against the peer at its best where it is installed."""
    from training import Work, compare

    work = Work(
        loss="triplet",
        batch=job.pick(64, 4),
        length=job.pick(256, 48),
        steps=job.pick(15, 2),
        data=job.data,
        model=job.model,
        precision="fp32" if job.dry_run else "bf16",
    )
    has_peer = importlib.util.find_spec("sentence_transformers") is not None
    with silent():
        rows = compare(work, ["peer, best", "ours"] if has_peer else ["ours"], 1)
    found: Found = {f"{case}, triplets/s": row["samples_per_s"] for case, row in rows.items()}
    found |= {f"{case}, MiB": row["peak_mib"] for case, row in rows.items()}
    return found | ({"times as fast": rows["ours"]["against"]["peer, best"]} if has_peer else {})


def embedding(job: Job) -> Found:
    """Texts embedded in a second, and the share of the time in which the GPU computes nothing."""
    count = job.pick(20_000, 32)
    config = ModelConfig(name=job.model, max_length=job.pick(256, 48), pooling="mean", embedding_dim=0)
    model = TrainedModel.pretrained(config)
    tokens = model.tokenize(job.texts(count))
    model.embed(tokens, np.arange(min(count, 512)))
    with profile(activities=[ProfilerActivity.CPU if job.dry_run else ProfilerActivity.CUDA]) as taken:
        seconds = job.seconds(lambda: model.embed(tokens, np.arange(count)), 1)
    events = taken.key_averages()
    busy = sum(event.self_cpu_time_total if job.dry_run else event.self_device_time_total for event in events) / 1e6
    return {"texts/s": count / seconds, "idle": max(0.0, 1 - busy / seconds), "packed": model.packing is not None}


STEPS: dict[str, Callable[[Job], Found]] = {
    "inputs": inputs,
    "attention": attention,
    "unit tests": unit_tests,
    "preflight": preflight,
    "fp32 as on a CPU": fp32_as_on_a_cpu,
    "precisions": precisions,
    "out of memory": out_of_memory,
    "waits": waits,
    "packed": packed,
    "training": training,
    "embedding": embedding,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given, _ = parser.parse_known_args()  # a run that starts again by itself adds --run.dir
    found = STEPS[given.step](Job(given.folder, given.dry_run))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
