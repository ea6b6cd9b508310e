"""Retrieval tasks: the eight tasks of the corpus paper, and the task that BEIR and MTEB make of the corpus.

The tasks are those of Wachsmuth, Syed, Stein, "Retrieval of the Best Counterargument without Prior Topic Knowledge" (ACL
2018), from easy to hard. Queries are always the points of a split, the right answer is always the point's own counter, and
the point itself is never a candidate. A counter argues against its point: in the folder layout it lies in that point's
folder, but takes the other side. So the texts that oppose a pro point are the counters of its debate's pro points, and, if
points are candidates as well, the con points.

sdoc   same debate, opposing counters     counters of the debate's points of the query's own stance
sdc    same debate, counters              all counters of the debate
sdoa   same debate, opposing arguments    sdoc's counters and the debate's points of the other stance
sda    same debate, arguments             all counters and points of the debate
stc    same theme, counters               all counters of the theme
sta    same theme, arguments              all counters and points of the theme
epc    entire portal, counters            all counters of the split
epa    entire portal, arguments           all counters and points of the split: what training measures (protocol.py)
beir   all splits, distinct texts         every distinct text of every split, except texts identical to the query; MTEB's
                                          ArguAna, whose main score is nDCG@10 (Thakur et al. 2021, arXiv 2104.08663)

P: pairs of the split, Q: queries of a pool, C: its candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from biencoder.data import Split
from biencoder.data.ids import Ids
from biencoder.data.pairs import Label, labels_of
from biencoder.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Task:
    """A definition of the candidates of a query."""

    name: str
    title: str
    scope: Literal["debate", "theme", "portal", "everything"]
    """Candidates are the texts of the query's debate or theme, of the split (portal), or of all splits (everything)."""
    has_points: bool
    """Whether points are candidates besides counters."""
    opposing: bool = False
    """Whether all candidates oppose the query."""


TASKS = {
    task.name: task
    for task in (
        Task("sdoc", "same debate, opposing counters", "debate", has_points=False, opposing=True),
        Task("sdc", "same debate, counters", "debate", has_points=False),
        Task("sdoa", "same debate, opposing arguments", "debate", has_points=True, opposing=True),
        Task("sda", "same debate, arguments", "debate", has_points=True),
        Task("stc", "same theme, counters", "theme", has_points=False),
        Task("sta", "same theme, arguments", "theme", has_points=True),
        Task("epc", "entire portal, counters", "portal", has_points=False),
        Task("epa", "entire portal, arguments", "portal", has_points=True),
        Task("beir", "all splits, distinct texts", "everything", has_points=True),
    )
}


@dataclass(frozen=True, slots=True)
class Pool:
    """Queries that share their candidates."""

    pair_Q: Ids
    """Each query's pair in the split."""
    candidate_text_C: Ids
    gold_Q: Ids
    """Position of each query's right answer among the candidates."""
    own_Q: Ids
    """Position of the query itself, which it must not retrieve; -1 if it is no candidate."""

    def distinct(self, split: Split) -> "Pool":
        """The pool with each distinct text as one candidate: a copy of the counter is right, a copy of the point is own."""
        text_C, position_C = np.unique(self.candidate_text_C, return_inverse=True)
        point_Q = split.point_text_P[self.pair_Q]
        place_Q = np.minimum(np.searchsorted(text_C, point_Q), len(text_C) - 1)
        own_Q = np.where(text_C[place_Q] == point_Q, place_Q, -1)
        return Pool(self.pair_Q, text_C, position_C[self.gold_Q], own_Q)

    @property
    def num_candidates_Q(self) -> Ids:
        return len(self.candidate_text_C) - (self.own_Q >= 0)


def pools(task: Task, split: Split, num_texts: int) -> Iterator[Pool]:
    """The task's pools; each pair of the split is a query of exactly one. Candidates are counters, then points, in order.

    Args:
        num_texts: number of distinct texts of all splits.
    """
    every_P = np.arange(len(split))
    if task.scope == "everything":
        yield Pool(every_P, np.arange(num_texts), split.counter_text_P, split.point_text_P)
        return
    scope_P = np.zeros_like(every_P)
    if task.scope != "portal":
        numbers = split.groups({"debate": "debates", "theme": "themes"}[task.scope])
        assert numbers is not None
        scope_P = numbers
    _, stance_P = labels_of(split.pairs, "stance")
    side_P = stance_P if task.opposing else np.zeros_like(every_P)
    for in_scope, side in _scopes_and_sides(scope_P, side_P):
        pair_Q = in_scope[side_P[in_scope] == side]
        points = in_scope[side_P[in_scope] != side] if task.opposing else pair_Q
        candidate_text_C = split.counter_text_P[pair_Q]
        if task.has_points:
            candidate_text_C = np.concatenate([candidate_text_C, split.point_text_P[points]])
        gold_Q = np.arange(len(pair_Q))
        is_among_them = task.has_points and not task.opposing
        yield Pool(pair_Q, candidate_text_C, gold_Q, len(pair_Q) + gold_Q if is_among_them else np.full_like(gold_Q, -1))


def _scopes_and_sides(scope_P: Ids, side_P: Ids) -> Iterator[tuple[Ids, int]]:
    """Every combination of a scope and a side that occurs in it, as the scope's pairs and the side."""
    order_P = np.argsort(scope_P, kind="stable")
    for in_scope in np.split(order_P, np.flatnonzero(np.diff(scope_P[order_P])) + 1):
        for side in sorted(set(side_P[in_scope].tolist())):
            yield in_scope, side


def choose_tasks(text: str, split: Split) -> list[Task]:
    """The tasks that a command line names, in the paper's order; `all`: those that the corpus tells apart.

    Raises:
        ConfigError: a name is none of a task.
        DataError: the corpus lacks what a named task is about, or has no points among its candidates.
    """
    if split.judgements:
        raise DataError(
            "the tasks have points among their candidates, but there are none in queries over a corpus, nor with "
            "data.candidates = counters: give evaluate.py --model and --data.root alone, which measures every split"
        )
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in TASKS and name != "all"]
    if unknown or not asked:
        raise ConfigError(
            f"--tasks {text}: {', '.join(unknown) or 'nothing'} is no task; expected all, or some of {', '.join(TASKS)}"
        )
    chosen = []
    for task in TASKS.values():
        lacking = _lacking(task, split)
        if task.name in asked and lacking:
            raise DataError(
                f"--tasks {task.name} ({task.title}) needs the {lacking} of each pair, which the {split.name} split lacks"
            )
        if task.name in asked or ("all" in asked and not lacking):
            chosen.append(task)
    return chosen


def _lacking(task: Task, split: Split) -> str:
    """The field that a task needs and no pair of the split has; empty if there is none."""
    needed: dict[Label, bool] = {"topic": task.scope == "debate", "domain": task.scope == "theme", "stance": task.opposing}
    for field, is_needed in needed.items():
        if is_needed and not any(labels_of(split.pairs, field)[0]):
            return field
    return ""
