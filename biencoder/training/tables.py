"""Texts for people to look at, as tables: columns and rows of plain values, with long texts cut."""

from collections.abc import Sequence
from typing import Any, TypedDict

from biencoder.data import Split
from biencoder.evaluation.protocol import Example
from biencoder.mining.audit import CloseNegative
from biencoder.tracking.formats import shortened

_SHOWN = 300
"""Characters of a text in a cell."""


class Table(TypedDict):
    columns: list[str]
    rows: list[list[Any]]


def examples_table(examples: Sequence[Example], texts: Sequence[str]) -> Table:
    """A row for each retrieved text: the point, its own counter and where that was found, and the retrieved text."""
    return {
        "columns": ["point", "gold", "gold_rank", "rank", "retrieved", "distance", "probability"],
        "rows": [
            [
                _cell(texts[example.point_text]),
                _cell(texts[example.gold_text]),
                example.gold_rank,
                rank,
                _cell(texts[text]),
                distance,
                probability,
            ]
            for example in examples
            for rank, (text, distance, probability) in enumerate(example.retrieved, 1)
        ],
    }


def closest_table(closest: Sequence[CloseNegative], split: Split, texts: Sequence[str]) -> Table:
    """A row for each suspicious sample: its three texts and the three distances between them."""
    return {
        "columns": ["point", "counter", "negative", "to_point", "to_counter", "counter_to_point"],
        "rows": [
            [
                _cell(texts[split.point_text_P[found.sample]]),
                _cell(texts[split.counter_text_P[found.sample]]),
                _cell(texts[found.negative_text]),
                found.to_point,
                found.to_counter,
                found.counter_to_point,
            ]
            for found in closest
        ],
    }


def _cell(text: str) -> str:
    return shortened(text, _SHOWN)
