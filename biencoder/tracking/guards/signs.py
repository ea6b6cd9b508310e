"""One function for each guard: it returns the symptom in the run's records, or None.

The troubles of the reference (exploding gradients, oscillation, slow convergence, out of memory) are among them, with its
answers. Where one record proves little, a sign needs several: with train.log_every at 10, five records are 50 steps.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from biencoder.config.schema import Config
from biencoder.tracking.guards.history import History, any_of
from biencoder.tracking.names import RecordKind, accuracy
from biencoder.tracking.numbers import from_json


class Symptom(NamedTuple):
    sign: str
    advice: str


Look = Callable[[History], Symptom | None]

EXPLODED_LOSS, EXPLODED_NORM = 3.0, 10.0
AT_MARGIN, COLLAPSED_SPREAD = 0.02, 0.05
SHRUNK = 0.25
FEW_ACTIVE, MANY_ACTIVE = 0.02, 0.98
SWING = 0.1
SAME_LOSS, SAME_ACCURACY = 0.02, 0.005
STALLED, SLOW = 0.3, 1.5
OVERFLOWS, SCALE_FOUND_AFTER = 3, 50
COPIES = 0.02


def exploding_gradients(history: History) -> Symptom | None:
    config, loss, norm = history.config, history.now("train/loss"), history.now("train/grad_norm")
    # What a model that knows nothing loses: the whole margin, a coin toss for each of the two classifications or a draw
    # among the counter and its negatives, and a draw among all candidates of the batch.
    weights, candidates = config.loss, config.train.global_batch_size * (2 + config.mining.negatives)
    choices = 1 + config.mining.negatives if weights.classification == "ranking" else 4
    chance = weights.triplet_weight * weights.margin + weights.contrastive_weight * math.log(candidates)
    chance = _num_sizes(config) * chance + weights.classification_weight * math.log(choices)
    start = max(chance, history.first_loss)
    before = history.last("train/grad_norm", 21)[:-1] or history.last("train/grad_norm", 6)[:-1]
    finite = [value for value in before if math.isfinite(value)]
    usual = statistics.median(finite) if finite else math.inf
    limit = EXPLODED_NORM * max(usual, config.train.clip_norm or 1.0)
    if loss > EXPLODED_LOSS * start:
        sign = f"the loss is {loss:.3g}, more than {EXPLODED_LOSS:g} times the {start:.3g} it began with"
    elif limit < norm < math.inf:
        sign = f"the gradient norm is {norm:.3g}, more than {limit:.3g} ({EXPLODED_NORM:g} times the usual)"
    else:
        return None
    clip = "" if config.train.clip_norm else history.setting("train.clip_norm", 1)
    warmup = "" if config.train.warmup_ratio else history.setting("train.warmup_ratio", 0.1)
    tries = any_of(history.lower_lr(10), clip, warmup)
    return Symptom(sign, f"{tries}; if it stays, look in the data check for broken texts and wrong pairs")


def non_finite_gradient(history: History) -> Symptom | None:
    if history.precision == "fp16" or history.latest["event"] != "skipped step":
        return None
    return Symptom(
        f"{history.latest['detail']}: the step changed nothing",
        f"look at these samples; if they are sound, {history.lower_lr(3)}",
    )


def fp16_overflow(history: History) -> Symptom | None:
    if history.precision != "fp16":
        return None
    first = max(SCALE_FOUND_AFTER, history.latest["step"] - 100)
    recent = sum(step > first for step in history.skipped)
    if recent < OVERFLOWS:
        return None
    return Symptom(
        f"{recent} of the last 100 steps overflowed in fp16; {OVERFLOWS} or more mean that no loss scale fits",
        any_of(history.setting("train.precision", "bf16") + " where the GPU has bf16", history.lower_lr(3)),
    )


def embedding_collapse(history: History) -> Symptom | None:
    margin = history.config.loss.margin
    if history.latest["kind"] == "mine":
        spread, least = history.now("mine/spread"), COLLAPSED_SPREAD * margin
        if not spread < least:
            return None
        sign = f"all texts have nearly the same embedding: their spread is {spread:.2g}, below {least:.2g}"
    else:
        losses, active = history.last("train/loss_triplet", 5), history.last("train/active_triplets", 5)
        if (
            not history.config.loss.triplet_weight
            or not losses
            or not _at_margin(losses, history.config)
            or min(active) < 0.99
        ):
            return None
        sign = (
            f"the triplet loss has stayed within {AT_MARGIN:.0%} of the margin ({margin:g}) for 5 records: points are as "
            "far from their counters as from their negatives"
        )
    tries = any_of(history.lower_lr(10), history.random_rate(+0.2))
    return Symptom(
        sign,
        f"{tries} (the nearest negatives alone can pull all texts together); see that model.name is a pretrained encoder",
    )


def shrinking_embeddings(history: History) -> Symptom | None:
    for name, text in (("mine/effective_rank", "effective rank"), ("mine/spread", "spread")):
        first, now = from_json(history.mines[0].get(name)), history.now(name)
        if 0 < now < SHRUNK * first:
            return Symptom(
                f"the embeddings' {text} has fallen from {first:.3g} to {now:.3g}, below {SHRUNK:.0%} of its start",
                any_of(history.lower_lr(3), history.random_rate(+0.2)),
            )
    return None


def active_triplets(history: History) -> Symptom | None:
    active, losses = history.last("train/active_triplets", 10), history.last("train/loss_triplet", 10)
    if not active or not history.config.loss.triplet_weight:
        return None
    config, share, margin = history.config, statistics.fmean(active), history.config.loss.margin
    if share <= FEW_ACTIVE:
        return Symptom(
            f"{share:.1%} of the triplets miss the margin ({FEW_ACTIVE:.0%} or less over 10 records): they teach no more",
            any_of(history.random_rate(-0.2), history.setting("loss.margin", 1.5 * margin)),
        )
    unreachable = config.model.normalize and margin >= 2
    falling = statistics.fmean(losses[5:]) < 0.98 * statistics.fmean(losses[:5])
    if not share >= MANY_ACTIVE or _at_margin(losses, config) or (falling and not unreachable):
        return None
    why = "; embeddings of length 1 are at most 2 apart, so none can meet it" if unreachable else ""
    lower = 0.5 if unreachable else margin / 2
    return Symptom(
        f"{share:.1%} of the triplets miss the margin of {margin:g} ({MANY_ACTIVE:.0%} or more over 10 records){why}",
        any_of(history.setting("loss.margin", lower), history.random_rate(+0.2)),
    )


def oscillation(history: History) -> Symptom | None:
    losses = history.epoch_losses()[-5:]
    if len(losses) < 5:
        return None
    changes = [after - before for before, after in itertools.pairwise(losses)]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(changes))
    if turns < 3 or max(losses) - min(losses) < SWING * statistics.fmean(losses):
        return None
    train = history.config.train
    shown = ", ".join(f"{loss:.3g}" for loss in losses)
    tries = any_of(
        history.setting("train.schedule", "linear") if train.schedule == "constant" else "",
        history.setting("train.global_batch_size", 2 * train.global_batch_size),
        history.random_rate(+0.1),
    )
    return Symptom(
        f"the loss goes up and down over five epochs ({shown}), by {SWING:.0%} or more",
        f"{tries} (the hardest negatives are often mislabelled)",
    )


def no_progress(history: History) -> Symptom | None:
    split = "validation" if accuracy("validation", "embedding") in history.latest else "training"
    losses = history.epoch_losses()[-3:]
    found = [from_json(line.get(accuracy(split, "embedding"))) for line in history.evals[-4:]]
    if len(losses) < 3 or len(found) < 4:
        return None
    fall, gain = (losses[0] - losses[-1]) / losses[0], max(found[1:]) - found[0]
    if fall >= SAME_LOSS or gain >= SAME_ACCURACY:
        return None
    return Symptom(
        f"over three epochs the loss has changed by {-fall:+.1%} and accuracy@1 on {split} by {100 * gain:+.1f} points "
        f"(progress is a fall of {SAME_LOSS:.0%} or a gain of {100 * SAME_ACCURACY:g})",
        any_of(history.lower_lr(1 / 3), history.random_rate(-0.2), "another loss.margin")
        + "; if the accuracy is what you want, the training is over",
    )


def data_stall(history: History) -> Symptom | None:
    waits, steps = history.last("train/data_s", 3), history.last("train/step_s", 3)
    shares = [wait / step for wait, step in zip(waits, steps, strict=True)]
    if not shares or not min(shares) > STALLED:
        return None
    return Symptom(
        f"{statistics.fmean(shares):.0%} of a step goes into making its batch (more than {STALLED:.0%} over 3 records)",
        "give each rank more CPU cores (--cpus-per-task, OMP_NUM_THREADS), or look for other programs on its machine",
    )


def slow_rank(history: History) -> Symptom | None:
    ranks, ratios = history.last("train/slowest_rank", 5), history.last("train/slowest_ratio", 5)
    if not ranks or len(set(ranks)) > 1 or not min(ratios) > SLOW:
        return None
    return Symptom(
        f"rank {ranks[0]:.0f} took {statistics.fmean(ratios):.1f} times as long as the others ({SLOW:g} or more, 5 times)",
        "all ranks wait for it: look for another program, heat or a slower GPU on its machine (the job's --preflight names "
        "hosts and devices), and leave it out if it stays slow",
    )


def close_negatives(history: History) -> Symptom | None:
    share, first_rank = history.now("mine/near_copies"), from_json(history.mines[0].get("mine/effective_rank"))
    if not share > COPIES or history.now("mine/effective_rank") < SHRUNK * first_rank:
        return None  # after a collapse nearly all embeddings look like copies
    return Symptom(
        f"{share:.1%} of the negatives nearly copy their point or counter (more than {COPIES:.0%}): they may be right",
        "look at the closest negatives in report.html, then "
        + any_of("remove near-duplicates from the corpus", history.random_rate(+0.2)),
    )


def out_of_memory(history: History) -> Symptom | None:
    if history.latest["event"] != "smaller micro-batch":
        return None
    return Symptom(
        f"the GPU's memory was full; the run goes on with micro-batches {history.latest['detail']}",
        f"{history.setting('model.max_length', history.config.model.max_length // 2)}, a higher ZeRO stage "
        "(ds_configs/README.md), or leave it: the global batch is the same",
    )


def _at_margin(losses: list[float], config: Config) -> bool:
    margins = _num_sizes(config) * config.loss.margin
    return all(abs(loss - margins) < AT_MARGIN * margins for loss in losses)


def _num_sizes(config: Config) -> int:
    """How many sizes of embeddings triplet and contrastive loss are summed over."""
    return 1 + len(config.loss.truncations(config.model.embedding_dim))


GUARDS: dict[str, tuple[tuple[RecordKind, ...], Look]] = {
    "exploding gradients": (("step",), exploding_gradients),
    "non-finite gradient": (("event",), non_finite_gradient),
    "fp16 overflow": (("event",), fp16_overflow),
    "embedding collapse": (("step", "mine"), embedding_collapse),
    "shrinking embeddings": (("mine",), shrinking_embeddings),
    "active triplets": (("step",), active_triplets),
    "oscillation": (("mine", "eval"), oscillation),
    "no progress": (("eval",), no_progress),
    "data stall": (("step",), data_stall),
    "slow rank": (("step",), slow_rank),
    "close negatives": (("mine",), close_negatives),
    "out of memory": (("event",), out_of_memory),
}
"""Each guard's name, the kinds of record it looks at, and what it looks for."""
