"""Embedding texts and searching the vectors, on the ranks of a training job or with a trained model in one process.

Imports model and what is below it. Hands out `embedding.embed_texts`; `nearest.nearest_allowed`, which searches the indexes
that `build.build_index` makes; `trained_model.TrainedModel`; and `saved_index` for a corpus that is searched often.
"""
