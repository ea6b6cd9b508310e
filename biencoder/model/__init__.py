"""The bi-encoder: a model that makes vectors and logits of texts, its pretrained encoder, and the folder it is saved in.

Imports data and what is below it; it does not depend on training, mining or retrieval. Hands out `bi_encoder.BiEncoder`,
`pretrained.load_pretrained`, `batch.triplet_batch`, and `folder.save_model` and `load_model`.
"""
