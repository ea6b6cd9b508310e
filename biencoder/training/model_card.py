"""The model card: what a model is, how it was trained, what it scores, how it is used, and its limits.

Its front matter is what the Hugging Face hub reads, results included (https://huggingface.co/docs/hub/model-cards).
"""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from biencoder import __version__
from biencoder.config.schema import Config
from biencoder.data import Dataset, Split
from biencoder.data.hub import hub_repository
from biencoder.data.provenance import corpus_licence, corpus_name
from biencoder.model.pretrained import hub_name
from biencoder.tracking.names import Metrics, accuracy, sizes
from biencoder.training.plan import steps_per_epoch


def model_card(config: Config, dataset: Dataset, metrics: Metrics, *, step: int) -> str:
    """The README of an exported model.

    Args:
        metrics: of the evaluation after `step`.
    """
    return f"""---
{_front_matter(config, dataset, metrics)}
---
# Counter-argument bi-encoder

{_introduction(config)}

## Training

| | |
|---|---|
{_rows(_training(config, dataset, step))}

## Evaluation

{_evaluation(dataset, metrics)}

{_protocol(config, dataset)}

## Use

{_usage(config)}

## Limits

{_limits(config, dataset)}
"""


def _introduction(config: Config) -> str:
    name = config.model.name
    base = f"`{hub_name(name) or Path(name).name}`"
    return (
        "Encodes an argument so that its best counter-argument, the text that takes up the same aspect with the opposite "
        f"stance, is\nthe nearest one. Trained from {base} with biencoder {__version__}."
    )


def _front_matter(config: Config, dataset: Dataset, metrics: Metrics) -> str:
    """As YAML. Results are those of splits that the model was not trained on."""
    corpus, on_the_hub = corpus_name(config.data.root), hub_repository(config.data.root)
    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="counter-argument retrieval",
            dataset_type=corpus,
            dataset_name=corpus,
            dataset_split=split,
            metric_type=kind,
            metric_name=label,
            metric_value=round(metrics[name], 4),
        )
        for split in dataset.splits
        if split != "training"
        for kind, label, name in _quoted_metrics(split, sizes(metrics))
        if name in metrics
    ]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "counter-argument-retrieval", "bi-encoder"],
        datasets=[on_the_hub] if on_the_hub else None,
        base_model=hub_name(config.model.name),
        model_name="counter-argument bi-encoder",
        eval_results=results or None,
    )
    return data.to_yaml()


def _quoted_metrics(split: str, shorter: Sequence[int] = ()) -> list[tuple[str, str, str]]:
    """(what the hub calls it, what a person calls it, name of the metric) of everything that a card says of a split.

    Args:
        shorter: sizes of embeddings that were measured beside the full one.
    """
    return [
        ("accuracy@1", "accuracy@1", accuracy(split, "embedding")),
        ("accuracy@1_text", "accuracy@1, copies as one", accuracy(split, "embedding", text=True)),
        ("mrr@10", "MRR@10", f"eval/{split}/embedding/mrr@10"),
        ("ndcg@10", "nDCG@10", f"eval/{split}/embedding/ndcg@10"),
        ("accuracy@1_reranked", "accuracy@1, re-ranked", accuracy(split, "rerank")),
        ("accuracy@1_text_reranked", "accuracy@1, re-ranked, copies as one", accuracy(split, "rerank", text=True)),
        ("ece", "classifier's calibration error", f"eval/{split}/rerank/calibration_error"),
        *((f"accuracy@1_dim{n}", f"accuracy@1, {n} dimensions", accuracy(split, f"dim{n}")) for n in shorter),
    ]


def _evaluation(dataset: Dataset, metrics: Metrics) -> str:
    """A table of all splits; what was not measured on any of them has no column."""
    labels = [
        label
        for _, label, name in _quoted_metrics("{}", sizes(metrics))
        if any(name.format(split) in metrics for split in dataset.splits)
    ]
    rows = []
    for name in dataset.splits:
        values = {label: metrics[metric] for _, label, metric in _quoted_metrics(name, sizes(metrics)) if metric in metrics}
        shown = [f"{100 * values[label]:.2f} %" if "accuracy" in label else f"{values[label]:.3f}" for label in labels]
        queries = f"{metrics[f'eval/{name}/queries']:,}"
        rows.append(f"| {' | '.join([name, queries, *shown])} |")
    return "\n".join([f"| {' | '.join(['split', 'points', *labels])} |", "|---" * (len(labels) + 2) + "|", *rows])


def _training(config: Config, dataset: Dataset, step: int) -> dict[str, str]:
    train, model, pairs = config.train, config.model, len(dataset.splits["training"])
    warmup = f"reached after {100 * train.warmup_ratio:g} % of the steps, then " if train.warmup_ratio else ""
    schedule = {"constant": "constant", "linear": "falling linearly to 0", "cosine": "falling to 0 as a cosine"}[
        train.schedule
    ]
    factors = [
        f"{train.head_lr_factor:g} times that for the projection and the classifier" * (train.head_lr_factor != 1),
        f"{train.layer_decay:g} of the layer above for each layer of the encoder" * (train.layer_decay != 1),
    ]
    sides = {
        "shared": "queries and candidates share all weights",
        "heads": "queries and candidates share the encoder and have a projection each",
        "encoders": "queries and candidates have an encoder and a projection each",
    }
    return {
        "objective": _objective(config),
        "negatives": _negatives(config, dataset),
        "batch": f"{train.global_batch_size} pairs"
        + ("" if train.batches == "shuffled" else f", as far as possible whole {train.batches}"),
        "length": f"{step:,} steps, {step / steps_per_epoch(dataset, config):.3g} epochs of {pairs:,} pairs",
        "optimizer": f"{train.optimizer}, weight decay {train.weight_decay:g}, "
        + (f"gradients clipped at norm {train.clip_norm:g}" if train.clip_norm else "no clipping"),
        "learning rate": ", ".join([f"{train.peak_lr:.3g}, {warmup}{schedule}", *filter(None, factors)]),
        "model": f"{sides[model.sides]}; dropout {model.dropout:g}; "
        + ("the encoder was frozen" if model.freeze_encoder else "all weights were trained")
        + f"; saved are {1 - train.pretrained_share:g} of them plus {train.pretrained_share:g} of the pretrained ones"
        * (train.pretrained_share > 0),
        "texts": f"cut at {model.max_length} tokens, " + ("cleaned" if config.data.clean else "as they stand"),
        **({"prompts": "{!r} before queries, {!r} before texts".format(*model.prompts)} if any(model.prompts) else {}),
        "data": f"{_corpus(config.data.root)}; fingerprint `{dataset.fingerprint}`, seed {config.run.seed}",
    }


def _corpus(root: str) -> str:
    licence = corpus_licence(root)
    return f"`{corpus_name(root)}`" + (f", licence: {licence}" if licence else "")


def _objective(config: Config) -> str:
    loss = config.loss
    directions = "from point to counter and back" if loss.symmetric else "from point to counter"
    judged = ", of the counter among its negatives" if loss.classification == "ranking" else ""
    parts = {
        f"triplet loss with margin {loss.margin:g}": loss.triplet_weight,
        f"cross-entropy of a pair classifier{judged}": loss.classification_weight,
        f"in-batch contrastive loss (InfoNCE, temperature {loss.temperature:g}, {directions})": loss.contrastive_weight,
    }
    said = " + ".join(f"{weight:g} × {part}" for part, weight in parts.items() if weight)
    shorter = loss.truncations(config.model.embedding_dim)
    if shorter:
        said += (
            f"; triplet and contrastive loss are summed over all dimensions and the first {', '.join(map(str, shorter))}"
        )
    of = "embeddings of length 1, where cosine gives the same order" if config.model.normalize else "embeddings"
    return f"{said}; Euclidean distances of {of}"


def _negatives(config: Config, dataset: Dataset) -> str:
    mining, given = config.mining, dataset.splits["training"].given
    in_batch = "the other texts of the batch" if config.loss.contrastive_weight else ""
    if not mining.negatives:
        return f"{in_batch}; none were mined"
    parts = [in_batch] if in_batch else []
    if given and mining.given == "only":
        return "; and ".join([f"{mining.negatives} for each pair, given with the data; none were mined", *parts])
    if given:
        having, pairs = int((given.counts_P > 0).sum()), len(given.counts_P)
        parts.insert(
            0, f"those given with the data, which {having:,} of {pairs:,} pairs have, in place of the first of them"
        )
    window = f"from rank {mining.range_min + 1} on" if mining.range_min else ""
    if mining.range_max:
        window = f"drawn from ranks {mining.range_min + 1} to {mining.range_max}"
    bounds = {
        f"farther than the counter by {mining.absolute_margin:g}": mining.absolute_margin,
        f"farther than the counter by {100 * mining.relative_margin:g} %": mining.relative_margin,
        f"with at most {100 * mining.positive_share:g} % of the counter's cosine": mining.positive_share,
    }
    among = {
        "corpus": "",
        "themes": " of the same theme",
        "debates": " of the same debate",
        "other_debates": " of other debates",
    }[mining.focus]
    near = ", ".join(
        [f"the nearest texts{among}", *filter(None, [window]), *(bound for bound, value in bounds.items() if value)]
    )
    share = f"{100 * mining.random_rate:g} % at random in the first epoch"
    if mining.random_rate and mining.random_rate_decay:
        share += f" and {100 * mining.random_rate_decay:g} points fewer in each later one"
    often = "every epoch" if mining.every_epochs == 1 else f"each {mining.every_epochs} epochs"
    mined = f"{mining.negatives} for each pair, mined again before {often}: {share}, the others {near}"
    return "; and ".join([mined, *parts])


def _protocol(config: Config, dataset: Dataset) -> str:
    candidates = _candidates(dataset.splits[dataset.deciding_split])
    said = [
        f"Each point is ranked against {candidates}. Copies of a text are rivals of each other, except where the table "
        'says "copies as one".'
    ]
    if config.has_classifier:
        said.append(f"Re-ranked: the nearest {config.eval.top_k} in the order of the pair classifier's probability.")
    if dataset.deciding_split == "validation":
        chosen_by = next(label for _, label, name in _quoted_metrics("validation") if name.endswith(config.eval.metric))
        said.append(f"Of a run's models, `best` has the highest {chosen_by}, on validation; `last` is the final one.")
    else:
        said.append(
            "There was no validation split: `best` was chosen on training, and nothing tells how it does on new texts."
        )
    return " ".join(said)


def _candidates(split: Split) -> str:
    further = len(split.corpus_text_C)
    if split.judgements:
        return f"all {further:,} passages"
    return "all counters and points of its split but itself" + (f", and {further:,} further texts" if further else "")


def _usage(config: Config) -> str:
    alike = config.model.sides == "shared" and not any(config.model.prompts)
    for_queries, for_texts = ("encode", "encode") if alike else ("encode_query", "encode_document")
    if config.has_classifier:
        classifier = "`classifier.safetensors` is the pair classifier, for biencoder's own search."
    else:
        classifier = "No pair classifier was trained."
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this/folder")
arguments = model.{for_queries}(["an argument"])
texts = model.{for_texts}(["a text", "another text"])
model.similarity(arguments, texts)
```

`similarity` is the negative Euclidean distance: the greater, the nearer. {classifier}{_shorter(config)}"""


def _shorter(config: Config) -> str:
    sizes_named = config.loss.truncations(config.model.embedding_dim)
    if not sizes_named:
        return ""
    unit = ", and `normalize_embeddings=True` to `encode` for length 1" if config.model.normalize else ""
    return f"\nFor embeddings of fewer dimensions, give `truncate_dim={sizes_named[-1]}` to `SentenceTransformer`{unit}."


def _limits(config: Config, dataset: Dataset) -> str:
    limits = [
        "Something is always nearest, whether or not the corpus holds a counter-argument, and what is near may be untrue.",
        f"Trained on {len(dataset.splits['training']):,} pairs of one corpus. Other subjects, languages and kinds of text "
        "were not measured.",
        "Accuracy depends on how many texts there are to find the counter among: the more, the lower.",
        f"What comes after the first {config.model.max_length} tokens of a text is not seen.",
    ]
    if dataset.deciding_split == "validation":
        limits.append("The model was chosen on validation, so its figures there are a little too good.")
    return "\n".join(f"- {limit}" for limit in limits)


def _rows(values: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in values.items())
