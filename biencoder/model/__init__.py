"""The bi-encoder: pretrained weights in, vectors and logits out, and the folder that a trained model is kept in.

Imports data and what is below. Hands out `bi_encoder.BiEncoder`, `pretrained.load_pretrained`, `batch.triplet_batch`, and
`folder.save_model` and `load_model`. A batch comes from `data.tokens`; who trains or ranks with it is not known here.
"""
