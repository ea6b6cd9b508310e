"""The one interface between training and data: files → records → pairs → distinct texts and triplets of text ids.

    dataset = load_dataset("examples/debates", clean=True)
    split = dataset.splits["training"]
    dataset.texts[split.point_text_P[0]], dataset.texts[split.counter_text_P[0]]

Whatever its format, a corpus becomes a `Dataset`: every distinct text once, and for each split the pairs as text ids.
Two arguments with the same text share one id, so "the same text" is an integer comparison everywhere after this.
"""

from biencoder.data.dataset import Dataset, Split, load_dataset, load_texts
from biencoder.data.forbidden import Forbidden
from biencoder.data.members import Members

__all__ = ["Dataset", "Forbidden", "Members", "Split", "load_dataset", "load_texts"]
