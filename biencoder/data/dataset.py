"""A dataset: the distinct texts of a corpus, and for each split its pairs as text ids.

P: pairs of a split.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from biencoder.config import SPLITS, find_file
from biencoder.data.cleaning import tidier
from biencoder.data.columns import ColumnNames
from biencoder.data.readers import Records, read_records, read_texts
from biencoder.data.records import Findings, Pair, pair_up
from biencoder.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """The pairs of one split; `*_text_P` hold text ids."""

    name: str
    pairs: tuple[Pair, ...]
    point_text_P: npt.NDArray[np.int64]
    counter_text_P: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def text_ids(self) -> npt.NDArray[np.int64]:
        """The distinct text ids of this split, ascending."""
        return np.unique(np.concatenate([self.point_text_P, self.counter_text_P]))

    def groups(self, kind: str) -> npt.NDArray[np.int64] | None:
        """The group number (P,) of each pair.

        Args:
            kind: `debates` or `themes`; for any other the result is None.
        """
        if kind not in ("debates", "themes"):
            return None
        points = [pair.point for pair in self.pairs]
        names = [(point.domain,) if kind == "themes" else (point.domain, point.topic) for point in points]
        number_of = {name: number for number, name in enumerate(sorted(set(names)))}
        return np.array([number_of[name] for name in names], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A corpus in memory."""

    texts: tuple[str, ...]
    """Each distinct text once; a text id is a position here."""
    splits: dict[str, Split]
    """By name; splits without pairs are missing."""
    findings: Findings
    fingerprint: str
    """SHA-256 over splits, names and cleaned texts, in their order. It is equal for two corpora exactly when training sees
    the same data."""

    @property
    def deciding_split(self) -> str:
        """The split whose metric decides which model is the best."""
        return "validation" if "validation" in self.splits else "training"


def load_dataset(root: str, *, clean: bool, columns: str = "", needs_training: bool = True) -> Dataset:
    """Read, clean, check and pair a corpus. Oddities do not raise; `findings` counts them.

    Args:
        columns: the names of a table's columns, as data.columns gives them.

    Raises:
        ConfigError: `columns` is not written as data.columns must be.
        DataError: the corpus is missing, broken or too small.
    """
    findings = Findings()
    path = find_file(root)
    records = _cleaned(read_records(path, findings, ColumnNames.parse(columns)), clean=clean, findings=findings)
    pairs = {split: pair_up(records.get(split, []), findings) for split in SPLITS}
    if not any(pairs.values()):
        raise DataError(f"data.root {root} holds no pair of a point and its counter in any split")
    if needs_training and len(pairs["training"]) < 2:
        raise DataError(f"data.root {root} holds {len(pairs['training'])} training pairs; at least 2 are needed")
    for split in SPLITS:
        if not pairs[split]:
            findings.add("split without pairs (skipped)", split)
    text_id: dict[str, int] = {}
    splits = {
        split: Split(
            split,
            tuple(pairs[split]),
            np.array([text_id.setdefault(pair.point.text, len(text_id)) for pair in pairs[split]], dtype=np.int64),
            np.array([text_id.setdefault(pair.counter.text, len(text_id)) for pair in pairs[split]], dtype=np.int64),
        )
        for split in SPLITS
        if pairs[split]
    }
    _count_duplicates(splits, findings)
    return Dataset(tuple(text_id), splits, findings, _fingerprint(splits))


def load_texts(root: str, *, clean: bool, columns: str = "") -> tuple[tuple[str, ...], Findings]:
    """The distinct texts of a corpus to search: the texts of all its pairs, or those of a table that has texts alone.

    Raises:
        ConfigError: `columns` is not written as data.columns must be.
        DataError: the corpus is missing or broken, or holds nothing.
    """
    tidy, findings = tidier(clean), Findings()
    rows = read_texts(find_file(root), findings, ColumnNames.parse(columns))
    if rows is None:
        dataset = load_dataset(root, clean=clean, columns=columns, needs_training=False)
        return dataset.texts, dataset.findings
    texts: dict[str, None] = {}
    for raw, source in rows:
        text = tidy(raw)
        if text in texts:
            findings.add("repeated text (dropped)", source)
        elif text:
            texts[text] = None
        else:
            findings.add("empty text (dropped)", source)
    if not texts:
        raise DataError(f"data.root {root} holds no text")
    return tuple(texts), findings


def _cleaned(records: Records, *, clean: bool, findings: Findings) -> Records:
    tidy = tidier(clean)
    cleaned: Records = {}
    for split, split_records in records.items():
        cleaned[split] = []
        for record in split_records:
            text = tidy(record.text)
            if text:
                cleaned[split].append(replace(record, text=text))
            else:
                findings.add(f"empty {record.kind} (dropped)", record.source)
    return cleaned


def _count_duplicates(splits: dict[str, Split], findings: Findings) -> None:
    for name, split in splits.items():
        repeats = 2 * len(split) - len(split.text_ids)
        if repeats:
            findings.add("text repeated within a split", name, count=repeats)
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(splits[first].text_ids, splits[second].text_ids)
            if len(shared):
                findings.add("text that stands in two splits", f"{first} and {second}", count=len(shared))


def terminated(text: str) -> bytes:
    """The text as UTF-8 with a zero byte at its end and nowhere else, so that a hash of several texts sees their ends."""
    return text.encode().replace(b"\x00", b"\xff") + b"\x00"  # UTF-8 never contains 0xff


def _fingerprint(splits: dict[str, Split]) -> str:
    digest = hashlib.sha256()
    for split in splits.values():
        for pair in split.pairs:
            for field in (split.name, *pair.point.name, pair.point.text, pair.counter.text):
                digest.update(terminated(field))
    return digest.hexdigest()
