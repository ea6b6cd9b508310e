"""Corpora: files become records, records become pairs, and pairs become a `Dataset`.

    dataset = load_dataset("examples/debates", clean=True)
    split = dataset.splits["training"]
    dataset.texts[split.point_text_P[0]], dataset.texts[split.counter_text_P[0]]

A `Dataset` holds each distinct text once, and for each split the pairs as text ids. Arguments with the same text share one
id, so code outside this package compares ids and never texts. Imports distributed, config, environment, rng and errors.
Hands out `load_dataset`, `load_texts` and their types; `Forbidden` and `Members`, which say what may be a negative; and
`tokens.TokenizedTexts`, from which batches are made.
"""

from biencoder.data.dataset import Dataset, Split, load_dataset, load_texts
from biencoder.data.forbidden import Forbidden
from biencoder.data.members import Members

__all__ = ["Dataset", "Forbidden", "Members", "Split", "load_dataset", "load_texts"]
