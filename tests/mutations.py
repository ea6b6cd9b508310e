"""Do the tests of the heart notice when it is broken? Each mutation below is a mistake that somebody could make.

    python tests/mutations.py                 all of them, in a copy of this tree; about ten minutes on two cores
    python tests/mutations.py ties padding    those whose names hold one of these words

First the tests must pass on the untouched copy. Then each mutation replaces a text that stands once in a file, and the
tests that should notice it run until one fails. Exit code 0: every mutation was noticed; 1: some survived; 2: a text to
replace stands in its file no more, or more than once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LIMIT_S = 600
_PASSED, _FAILED = 0, 1
"""Exit codes of pytest; others say that it could not run the tests."""

EVALUATION, MINING, MODEL = (f"tests/unit/test_{name}.py" for name in ("evaluation", "mining", "model"))
SAMPLING, CONTRASTIVE = "tests/unit/test_sampling.py", "tests/unit/test_contrastive.py"
RESUME = "tests/e2e/test_resume.py::test_a_run_stopped_and_killed_ends_as_if_uninterrupted[triplets]"
PATIENCE = "tests/e2e/test_train.py::test_contrastive_learning_alone_needs_no_negatives_and_ends_when_nothing_gets_better"
GRADIENT = "tests/ranks/test_contrastive.py"
SKIPPED = "tests/ranks/test_divergence.py::test_single_steps_are_skipped_and_named"


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: str
    """A file of tests, or one test."""


MUTATIONS = (
    Mutation(
        "self match: a point may retrieve itself",
        "biencoder/evaluation/protocol.py",
        "torch.from_numpy(own_q[is_here])] = torch.inf",
        "torch.from_numpy(own_q[is_here])] += 0",
        EVALUATION,
    ),
    Mutation(
        "leak of the gold text: it is the query",
        "biencoder/evaluation/protocol.py",
        "query_text_Q = split.point_text_P[pair_Q]",
        "query_text_Q = split.counter_text_P[pair_Q]",
        EVALUATION,
    ),
    Mutation(
        "leak of the gold text: it is never reranked away",
        "biencoder/evaluation/protocol.py",
        "grades(ranking.reranked(top_k)[:, :1]) > 0).mean()",
        "grades(ranking.reranked(top_k)) > 0).any(1).mean()",
        EVALUATION,
    ),
    Mutation(
        "forbidden texts: a point's own counters are allowed as its negatives",
        "biencoder/data/forbidden.py",
        "for other in (points, counters)]",
        "for other in (points,)]",
        MINING,
    ),
    Mutation(
        "forbidden texts: a point is allowed as its own negative",
        "biencoder/data/forbidden.py",
        "for other in (points, counters)]",
        "for other in (counters,)]",
        MINING,
    ),
    Mutation(
        "forbidden texts: near-duplicates of what is forbidden are allowed",
        "biencoder/data/forbidden.py",
        "self.num_texts + self.same_N[texts])",
        "self.num_texts + texts)",
        MINING,
    ),
    Mutation(
        "forbidden texts: random negatives may be any",
        "biencoder/mining/selection.py",
        "good = forbidden.allows(split.point_text_P[samples[left]], texts) & (",
        "good = (",
        MINING,
    ),
    Mutation(
        "ties: mining takes the higher row",
        "biencoder/retrieval/nearest.py",
        "np.lexsort((rows_qk, measured_qk), axis=1)",
        "np.lexsort((-rows_qk, measured_qk), axis=1)",
        MINING,
    ),
    Mutation(
        "ties: a ranking takes the later candidate",
        "biencoder/evaluation/protocol.py",
        "by_position = positions.argsort(dim=1)",
        "by_position = positions.argsort(dim=1, descending=True)",
        EVALUATION,
    ),
    Mutation(
        "ties: ranks that search together take the higher text",
        "biencoder/retrieval/nearest.py",
        "np.lexsort((ids_QK, distance_QK), axis=1)",
        "np.lexsort((-ids_QK, distance_QK), axis=1)",
        "tests/ranks/test_sharded.py",
    ),
    Mutation(
        "padding is pooled",
        "biencoder/model/bi_encoder.py",
        "return (sum_UH / count_U1).to(states_ULH.dtype)",
        "return states_ULH.mean(1)",
        MODEL,
    ),
    Mutation(
        "padding is attended to",
        "biencoder/model/bi_encoder.py",
        "attention_mask=tokens.attention_mask_UL)",
        "attention_mask=tokens.attention_mask_UL * 0 + 1)",
        MODEL,
    ),
    Mutation(
        "resume off by one: a batch is left out",
        "biencoder/training/loop.py",
        ")[progress.step - start : max(0,",
        ")[progress.step - start + (progress.step > start) : max(0,",
        RESUME,
    ),
    Mutation(
        "resume: the epoch is mined for once more",
        "biencoder/mining/refresh.py",
        'bool(state["epoch_is_mined"]), None',
        "False, None",
        RESUME,
    ),
    Mutation(
        "resume: Adam's moments are those of a first step",
        "biencoder/training/engine/engine.py",
        "moment_steps=self.applied_steps)",
        "moment_steps=0)",
        RESUME,
    ),
    Mutation(
        "resume: sums not yet logged are forgotten",
        "biencoder/training/window.py",
        'self.steps = int(state["window_steps"])',
        "self.steps = 0",
        RESUME,
    ),
    Mutation(
        "pretrained share: training goes on from the interpolated weights",
        "biencoder/training/engine/interpolation.py",
        "            self._set(trained)\n",
        "            pass\n",
        "tests/ranks/test_state.py",
    ),
    Mutation(
        "pretrained share: the shares are exchanged",
        "biencoder/training/engine/interpolation.py",
        "start.float(), self._share)",
        "start.float(), 1 - self._share)",
        "tests/ranks/test_state.py",
    ),
    Mutation(
        "clip not applied",
        "biencoder/training/engine/settings.py",
        '"gradient_clipping": ("train.clip_norm", train.clip_norm)',
        '"gradient_clipping": ("train.clip_norm", 0.0)',
        "tests/ranks/test_engine.py::test_the_applied_update_is_the_clipped_gradient",
    ),
    Mutation(
        "rank draws: all ranks get the first one's samples",
        "biencoder/training/sampler.py",
        "rounds_MX.T[rank::world_size]",
        "rounds_MX.T[0::world_size]",
        SAMPLING,
    ),
    Mutation(
        "draws: repeated ones are equal",
        "biencoder/rng.py",
        "stream_seed(seed, purpose, epoch, draw)",
        "stream_seed(seed, purpose, epoch)",
        SAMPLING,
    ),
    Mutation(
        "epoch seed: every epoch has the same order",
        "biencoder/training/sampler.py",
        'purpose="sample order", epoch=epoch',
        'purpose="sample order", epoch=0',
        SAMPLING,
    ),
    Mutation(
        "epoch seed: every epoch draws the same random negatives",
        "biencoder/mining/selection.py",
        'purpose="random negative", epoch=epoch',
        'purpose="random negative", epoch=0',
        MINING,
    ),
    Mutation(
        "near duplicates share more than half",
        "biencoder/data/near_duplicates.py",
        "_LEAST_SHARED = 0.5",
        "_LEAST_SHARED = 0.55",
        "tests/unit/test_near_duplicates.py",
    ),
    Mutation(
        "counter among negatives: a right answer counts as a wrong one in the contrastive loss",
        "biencoder/training/contrastive.py",
        "logits_BC[row_x - start, column_x] = -torch.inf",
        "logits_BC[row_x - start, column_x] += 0",
        CONTRASTIVE,
    ),
    Mutation(
        "counter left out: the own counter is no candidate",
        "biencoder/training/contrastive.py",
        "[:, candidate_X != own_S[query_X]]",
        "[:, candidate_X >= 0]",
        CONTRASTIVE,
    ),
    Mutation(
        "contrastive temperature is applied twice",
        "biencoder/training/contrastive.py",
        "alpha=1 / temperature, out=logits_BC)",
        "alpha=1 / temperature**2, out=logits_BC)",
        CONTRASTIVE,
    ),
    Mutation(
        "label swapped: a counter is none",
        "biencoder/training/loss.py",
        "ones_B = torch.ones(",
        "ones_B = torch.zeros(",
        MODEL,
    ),
    Mutation(
        "label swapped: the probability of the other class",
        "biencoder/retrieval/reranking.py",
        ".softmax(dim=-1)[..., 1]",
        ".softmax(dim=-1)[..., 0]",
        EVALUATION,
    ),
    Mutation(
        "margin sign",
        "biencoder/training/loss.py",
        "negative_BKD) + margin)",
        "negative_BKD) - margin)",
        MODEL,
    ),
    Mutation(
        "classifier features: a difference without its absolute value",
        "biencoder/model/bi_encoder.py",
        "(u - v).abs()",
        "(u - v)",
        MODEL,
    ),
    Mutation(
        "GradCache: gradients of other ranks are not added",
        "biencoder/distributed/world.py",
        "        dist.reduce_scatter(summed, of_ranks)\n",
        "        summed.copy_(of_ranks[ctx.rank])\n",
        GRADIENT,
    ),
    Mutation(
        "GradCache: micro-batches are averaged twice",
        "biencoder/training/loss.py",
        "num_chunks * cached.surrogate(scores)",
        "cached.surrogate(scores)",
        GRADIENT,
    ),
    Mutation(
        "GradCache scaling by world size",
        "biencoder/distributed/world.py",
        "return summed, None, None",
        "return summed / ctx.size, None, None",
        GRADIENT,
    ),
    Mutation(
        "gather order: rows of the last rank come first",
        "biencoder/distributed/world.py",
        "        return torch.cat(parts)\n",
        "        return torch.cat(parts[::-1])\n",
        GRADIENT,
    ),
    Mutation(
        "mean over ranks is a sum",
        "biencoder/distributed/world.py",
        "values /= self.size",
        "values /= 1",
        "tests/ranks/test_world.py::test_collectives",
    ),
    Mutation(
        "loss-scale skip: skipped steps move the schedule",
        "biencoder/training/engine/engine.py",
        "return self.steps - self.skipped_steps",
        "return self.steps",
        "tests/ranks/test_state.py::test_a_loss_scale_that_overflows_is_halved_until_it_fits",
    ),
    Mutation(
        "gradient norm: of the last block alone",
        "biencoder/training/engine/gradient_norms.py",
        "total += torch.dot",
        "total = torch.dot",
        "tests/unit/test_gradient_norms.py",
    ),
    Mutation(
        "near duplicates: texts are compared in one band alone",
        "biencoder/data/near_duplicates.py",
        "for band in range(_BANDS):",
        "for band in range(1):",
        "tests/unit/test_near_duplicates.py",
    ),
    Mutation(
        "loss-scale skip: a gradient that is not finite is applied at stage 0",
        "biencoder/training/engine/engine.py",
        "if not torch.isfinite(self._plain_norm):",
        "if False:",
        "tests/ranks/test_state.py::test_a_step_whose_gradient_is_not_finite_on_one_rank_changes_nothing_on_any",
    ),
    Mutation(
        "best-model comparison: an equal one replaces the best",
        "biencoder/training/best_model.py",
        "if value > max(",
        "if value >= max(",
        PATIENCE,
    ),
    Mutation(
        "patience: one evaluation more",
        "biencoder/training/loop.py",
        "self.best.evaluations_since >= config.eval.patience",
        "self.best.evaluations_since > config.eval.patience",
        PATIENCE,
    ),
    Mutation(
        "metric of strict and text: copies are rivals in both",
        "biencoder/evaluation/protocol.py",
        "Candidates.of(split, pair_Q, distinct=bool(suffix))",
        "Candidates.of(split, pair_Q, distinct=False)",
        EVALUATION,
    ),
    Mutation(
        "metric: the fifth place and the sixth",
        "biencoder/evaluation/metrics.py",
        '"accuracy@5": Success @ 5,',
        '"accuracy@5": Success @ 6,',
        EVALUATION,
    ),
    Mutation(
        "random rate grows instead of decaying",
        "biencoder/config/schema.py",
        "self.random_rate - self.random_rate_decay * epoch",
        "self.random_rate + self.random_rate_decay * epoch",
        "tests/unit/test_config.py",
    ),
    Mutation(
        "window mean counts skipped steps",
        "biencoder/training/window.py",
        "self.parts_K / (self.steps or math.nan)",
        "self.parts_K / (self._timed_steps or math.nan)",
        SKIPPED,
    ),
    Mutation(
        "index rounding is taken for exact",
        "biencoder/retrieval/nearest.py",
        "_ROUNDING = 1e-5",
        "_ROUNDING = 0.0",
        MINING,
    ),
    Mutation(
        "warm-up begins at a rate of 0",
        "biencoder/training/engine/optim.py",
        "return (step + 1) / warmup",
        "return step / warmup",
        MODEL,
    ),
    Mutation(
        "overlap: an epoch is mined from the embeddings of its own start",
        "biencoder/mining/refresh.py",
        "stale = ahead is not None and ahead[0] == epoch",
        "stale = False",
        "tests/unit/test_mining_epochs.py",
    ),
)


def main(words: Sequence[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    wrong = [
        f"{mutation.name}: {count} times in {mutation.file}" for mutation in chosen if (count := _count(mutation)) != 1
    ]
    if wrong or not chosen:
        print("\n".join(wrong) or "no mutation has such a name", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=ignored)
        code, output = _run(tree, sorted({mutation.tests for mutation in chosen}))
        if code != _PASSED:
            print(f"the tests fail without any mutation:\n{output}", file=sys.stderr)
            return 2
        survivors = [mutation.name for mutation in chosen if not _is_noticed(mutation, tree)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations were noticed")
    return 1 if survivors else 0


def _count(mutation: Mutation) -> int:
    file = ROOT / mutation.file
    return file.read_text(encoding="utf-8").count(mutation.old) if file.is_file() else 0


def _is_noticed(mutation: Mutation, tree: Path) -> bool:
    file, begin = tree / mutation.file, time.monotonic()
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, output = _run(tree, [mutation.tests])
    finally:
        file.write_text(before, encoding="utf-8")
    failed = [line.split()[1].split("::")[-1] for line in output.splitlines() if line.startswith("FAILED ")]
    verdict = {_PASSED: "SURVIVED", _FAILED: "noticed by " + ", ".join(failed)}.get(
        code, f"SURVIVED: pytest ended with {code}"
    )
    print(f"{mutation.name:<90}{time.monotonic() - begin:4.0f} s  {verdict}", flush=True)
    return code == _FAILED


def _run(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of pytest on a tree's own package, up to the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"not after {_LIMIT_S} s"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
