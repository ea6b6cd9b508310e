"""Every setting of a run: typed, bounded, and described once; file, command line and `--help` all read it from here.

Each field also says whether a run that goes on from a checkpoint may have another value: FREE, FIXED or LENGTH.
"""

import dataclasses
import math
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from biencoder.errors import ConfigError

SPLITS = ("training", "validation", "test")
"""Parts of a corpus, in the order in which they are shown."""
_strict = ConfigDict(extra="forbid")


class OnResume(Enum):
    """Whether a resume may change a setting."""

    FREE = "it decides where and how the run computes, not what"
    FIXED = "another value would give another run"
    LENGTH = "the run may end later or earlier, where no learning rate depends on its end"


FREE, FIXED, LENGTH = OnResume


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class DataConfig:
    root: Annotated[str, FREE] = "examples/debates"
    """Corpus: a folder in the ArguAna layout, a folder with train/validation/test tables, one table of pairs (JSONL, CSV,
    TSV, Parquet), a folder that `datasets` has saved, a BEIR folder, MS MARCO triples, or hf:owner/name on the hub; see
    docs/data.md."""
    columns: Annotated[str, FREE] = ""
    """Columns of the tables, where they have other names than those in use, such as `point=title,counter=body`."""
    corpus: Annotated[str, FREE] = ""
    """Further texts, which belong to no pair and can be mined, ranked and found: tables with a column `text`, or folders of
    such tables, separated by commas."""
    candidates: Annotated[Literal["auto", "counters"], FIXED] = "auto"
    """What can be mined and retrieved. auto: the passages where `root` holds queries over a corpus, else the counters and
    points of each split; counters: never a point, and a point with several counters is a query with several answers."""
    clean: Annotated[bool, FIXED] = True
    """Resolve HTML entities, drop footnote marks and trailing reference lists."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class ModelConfig:
    name: Annotated[str, FIXED] = "bert-base-uncased"
    """Pretrained encoder: a folder, a Hugging Face name, or `minilm` for the one that a Python package carries (needs no
    network)."""
    max_length: Annotated[int, FIXED, Field(ge=8, le=8192)] = 256
    """Longest text, in tokens; the rest is cut."""
    dropout: Annotated[float, FIXED, Field(ge=0, lt=1)] = 0.1
    """Dropout of the encoder's hidden states, a probability. Above 0 the masks and the losses depend on the number of ranks
    and on the micro-batch."""
    attention_dropout: Annotated[float, FIXED, Field(ge=0, lt=1)] = 0.0
    """Dropout of attention weights. Above 0 attention is slow in fp32 on CPUs, and GPUs pad texts."""
    trust_remote_code: Annotated[bool, FIXED] = False
    """Run the Python code that the model brings along, for architectures that transformers does not have. Such code may do
    whatever you may: read it first."""
    pooling: Annotated[Literal["auto", "cls", "pooler", "mean", "last"], FIXED] = "auto"
    """How token vectors become one vector. auto: what the model states (sentence-transformers models do), else BERT's
    pooler, or the mean where no pooler was saved, or the last token of a decoder."""
    query_prompt: Annotated[str, FIXED] = "auto"
    """What is put before each query (point), `query: ` say; it counts in max_length. auto: the prompt of a
    sentence-transformers model that has one, else none; empty: none."""
    document_prompt: Annotated[str, FIXED] = "auto"
    """What is put before each candidate, in the same way."""
    embedding_dim: Annotated[int, FIXED, Field(ge=0, le=8192)] = 128
    """Size of the similarity embedding; 0: that of the model's own dense layer, if it has one, else the encoder's hidden
    size."""
    normalize: Annotated[bool, FIXED] = False
    """Scale similarity embeddings to length 1, so that distances lie in 0..2."""
    classifier: Annotated[Literal["linear", "residual"], FIXED] = "linear"
    """Form of the pair classifier. linear: the reference's linear layer; residual: the nearness of the embeddings on a
    learned scale, plus a small network that starts at 0, so that re-ranking begins at the order of the embeddings."""
    classifier_gradient: Annotated[float, FIXED, Field(ge=0, le=1)] = 1.0
    """Share of the pair classifier's gradient that reaches embeddings and encoder; 0: it learns from them, and they do not
    learn from it."""
    classifier_features: Annotated[Literal["both", "embedding", "pooled"], FIXED] = "both"
    """What the pair classifier sees: similarity embeddings, pooled vectors, or both."""
    classifier_norm: Annotated[bool, FIXED] = False
    """LayerNorm and ReLU before the linear pair classifier's layer; the residual one has its own LayerNorm."""
    sides: Annotated[Literal["shared", "heads", "encoders"], FIXED] = "shared"
    """What queries (points) and candidates have of their own. shared: nothing; heads: a projection each, over one encoder;
    encoders: all, from the same start."""
    gradient_checkpointing: Annotated[bool, FIXED] = False
    """Compute each layer's activations again in the backward pass: less memory, a third more time."""
    freeze_encoder: Annotated[bool, FIXED] = False
    """Train only the projection and the pair classifier."""

    @property
    def prompts(self) -> tuple[str, str]:
        """What is put before queries, and before candidates. `auto` is none, until the model has been read."""
        query, document = (prompt * (prompt != "auto") for prompt in (self.query_prompt, self.document_prompt))
        return query, document

    @property
    def sides_agree(self) -> bool:
        """Whether a text has the same vectors as a query and as a candidate."""
        return self.sides == "shared" and self.prompts[0] == self.prompts[1]


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class LossConfig:
    margin: Annotated[float, FIXED, Field(gt=0, le=100)] = 1.0
    """Margin of the triplet loss, a Euclidean distance."""
    triplet_weight: Annotated[float, FIXED, Field(ge=0)] = 1.0
    """Weight of the triplet loss."""
    classification_weight: Annotated[float, FIXED, Field(ge=0)] = 1.0
    """Weight of the pair classifier's cross-entropies."""
    classification: Annotated[Literal["pairs", "ranking"], FIXED] = "pairs"
    """What the pair classifier learns from. pairs: a cross-entropy for the counter and one for the negatives, as in the
    reference; ranking: one cross-entropy of the counter among its negatives, which is what re-ranking asks of it."""
    contrastive_weight: Annotated[float, FIXED, Field(ge=0)] = 0.0
    """Weight of the in-batch contrastive loss (InfoNCE) over the whole global batch; 0: none."""
    temperature: Annotated[float, FIXED, Field(gt=0, le=10)] = 0.05
    """Of the contrastive loss: what half the squared distances are divided by."""
    symmetric: Annotated[bool, FIXED] = False
    """Let the contrastive loss also ask of every counter which point it answers."""
    matryoshka_dims: Annotated[str, FIXED, Field(pattern=r"^([1-9][0-9]*( *, *[1-9][0-9]*)*)?$")] = ""
    """Train the first so many dimensions of the embeddings as well, `64,128,256` say: triplet and contrastive loss are
    summed over them and the full size, and each size is evaluated; empty: the full size alone."""

    @property
    def sizes_problem(self) -> str:
        """Why nothing would train embeddings of fewer dimensions; empty if none are wanted, or something does."""
        if not self.matryoshka_dims or self.triplet_weight or self.contrastive_weight:
            return ""
        return "loss.matryoshka_dims is for triplet and contrastive loss, and both have weight 0; set one above 0"

    def truncations(self, full: int) -> tuple[int, ...]:
        """The sizes that are named beside the full one, the largest first."""
        return tuple(sorted({int(size) for size in self.matryoshka_dims.split(",") if size} - {full}, reverse=True))


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class MiningConfig:
    index: Annotated[Literal["balltree", "faiss"], FIXED] = "faiss"
    """Nearest-neighbour index: scikit-learn's BallTree (reference) or FAISS (faster)."""
    negatives: Annotated[int, FIXED, Field(ge=0, le=64)] = 1
    """Negatives of each sample; 0: none are mined (contrastive loss alone)."""
    given: Annotated[Literal["first", "only", "off"], FIXED] = "first"
    """Negatives that a table gives beside its pairs. first: they take the first places of a sample, mined ones the rest;
    only: nothing is mined; off: they are left out."""
    every_epochs: Annotated[int, FIXED, Field(ge=1)] = 1
    """Mine before every so many epochs; those between keep their negatives, and the training texts are not embedded for
    them."""
    queries: Annotated[float, FIXED, Field(gt=0, le=1)] = 1.0
    """Share of the samples that get new negatives at a time; the others keep theirs, and it is their turn later. The first
    time all get some."""
    random_rate: Annotated[float, FIXED, Field(ge=0, le=1)] = 0.8
    """Share of negatives drawn at random in epoch 0; the rest are nearest."""
    random_rate_decay: Annotated[float, FIXED, Field(ge=0, le=1)] = 0.02
    """Subtracted from random_rate after every epoch, down to 0."""
    exclude_near_duplicates: Annotated[bool, FIXED] = False
    """Let texts that share half of their word triples count as one, so that none is a negative of another or of its points.
    Finding them takes 0.2 ms a text of 150 words, the first time."""
    focus: Annotated[Literal["corpus", "themes", "debates", "other_debates"], FIXED] = "corpus"
    """Where near negatives come from: anywhere, the theme or the debate of their sample alone, or any debate but that one,
    whose texts are rivals already in batches of whole debates (anywhere, if the corpus names no debates)."""
    range_min: Annotated[int, FIXED, Field(ge=0, le=10_000)] = 0
    """Leave out so many of the nearest texts, the likeliest to be right answers."""
    range_max: Annotated[int, FIXED, Field(ge=0, le=10_000)] = 0
    """Draw the near negatives at random from the range_min-th to the range_max-th nearest; 0: take the nearest from
    range_min on."""
    absolute_margin: Annotated[float, FIXED, Field(ge=0)] = 0.0
    """Near negatives must be so much farther from the point than its own counter; 0: no bound."""
    relative_margin: Annotated[float, FIXED, Field(ge=0)] = 0.0
    """The same as a share of the counter's distance: 0.05 is 5 % farther; 0: no bound."""
    positive_share: Annotated[float, FIXED, Field(ge=0, le=1)] = 0.0
    """Near negatives' cosine may be at most this share of the own counter's, 0.95 say (needs model.normalize); 0: no
    bound."""
    faiss_kind: Annotated[Literal["flat", "ivf", "hnsw"], FIXED] = "flat"
    """flat: exact. ivf, hnsw: approximate and faster on large corpora; their recall is reported."""
    ivf_probes: Annotated[int, FIXED, Field(ge=1)] = 32
    """Cells that an ivf search visits, of about 4 sqrt(texts)."""
    hnsw_ef: Annotated[int, FIXED, Field(ge=8)] = 64
    """Size of the candidate list of an hnsw search."""
    placement: Annotated[Literal["rank0", "sharded"], FREE] = "rank0"
    """rank0: rank 0 holds all embeddings and searches. sharded: every rank holds and searches its part, with the same
    result where the index is exact; for corpora that rank 0 cannot hold or search in time."""
    overlap: Annotated[bool, FIXED] = False
    """Search for the next epoch's negatives in the background of this one, on rank 0; they come from embeddings that are
    one epoch older. Needs placement rank0."""
    memory_gib: Annotated[float, FREE, Field(ge=0)] = 0.0
    """Most that embeddings and index may take on one rank, in GiB; a run that needs more is refused before it starts. 0:
    what is free."""

    @property
    def num_neighbours(self) -> int:
        """Near texts to search for each sample."""
        return self.range_max or self.range_min + self.negatives

    @property
    def range_problem(self) -> str:
        """Why the range of ranks cannot give the negatives of a sample; empty if it can."""
        if not self.range_max or self.range_max >= self.range_min + self.negatives:
            return ""
        return (
            f"mining.range_max {self.range_max} leaves fewer than mining.negatives {self.negatives} from mining.range_min "
            f"{self.range_min} on; raise it, or set it to 0"
        )

    @property
    def keeps_distance(self) -> bool:
        """Whether near negatives are bounded by the distance of the own counter."""
        return bool(self.absolute_margin or self.relative_margin or self.positive_share)

    @property
    def exact(self) -> bool:
        """Whether the index never misses a nearer text."""
        return self.index == "balltree" or self.faiss_kind == "flat"

    @property
    def sharded(self) -> bool:
        return self.placement == "sharded"

    def random_rate_at(self, epoch: int) -> float:
        """max(0, random_rate - random_rate_decay * epoch), a probability."""
        return max(0.0, self.random_rate - self.random_rate_decay * epoch)


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class EvalConfig:
    every_epochs: Annotated[int, FIXED, Field(ge=1)] = 1
    """Measure retrieval after every so many epochs."""
    metric: Annotated[
        Literal[
            "embedding/accuracy@1",
            "embedding/accuracy@1_text",
            "embedding/mrr@10",
            "embedding/ndcg@10",
            "rerank/accuracy@1",
            "rerank/accuracy@1_text",
        ],
        FIXED,
    ] = "embedding/accuracy@1"
    """Which metric on validation (on training without one) says which model is the best."""
    patience: Annotated[int, FIXED, Field(ge=0)] = 0
    """Stop after so many evaluations in a row that found no better model; 0: never."""
    top_k: Annotated[int, FIXED, Field(ge=1, le=1000)] = 10
    """Candidates that the pair classifier re-ranks for each query."""
    max_queries: Annotated[int, FIXED, Field(ge=0)] = 10_000
    """Take so many points of a split as queries, evenly spread, if it has more; 0: all of them."""
    batch_tokens: Annotated[int, FIXED, Field(ge=0)] = 0
    """Tokens, with padding, in one forward while texts are embedded; 0: 4096 on CPUs, 32768 on GPUs."""

    def batch_tokens_on(self, device_type: str) -> int:
        return self.batch_tokens or (4096 if device_type == "cpu" else 32768)


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class TrainConfig:
    epochs: Annotated[int, LENGTH, Field(ge=1)] = 10
    """Passes over the training triplets."""
    max_steps: Annotated[int, LENGTH, Field(ge=0)] = 0
    """Stop after so many optimizer steps, whatever the epoch; 0: no limit."""
    global_batch_size: Annotated[int, FIXED, Field(ge=1)] = 8
    """Triplets in one optimizer step, summed over ranks and accumulation."""
    micro_batch_size: Annotated[int, FREE, Field(ge=0)] = 0
    """Triplets in one forward on one rank; 0: global_batch_size / ranks. The contrastive loss sees the whole global batch
    all the same (GradCache), for one more forward where it takes several. Without dropout the losses do not depend on
    it."""
    batches: Annotated[Literal["shuffled", "debates", "themes", "clusters"], FIXED] = "shuffled"
    """What a global batch is made of: any samples, or as far as possible whole debates, whole themes, or whole clusters of
    some 16 near pairs. Clusters need no labels: the pretrained encoder finds them, once."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], FREE] = "auto"
    """What weights and activations are computed in. auto: what the DeepSpeed file enables, else what this machine computes
    fastest of bf16, fp16 (on GPUs) and fp32. A resume keeps the precision of its checkpoint, or is refused."""
    packing: Annotated[Literal["auto", "never"], FREE] = "auto"
    """auto: texts of a batch are encoded one after the other without padding, on GPUs in bf16 and fp16 where model and
    PyTorch allow it; a start says why they do not. never: they are padded. Results differ by rounding, and with dropout in
    what is dropped."""
    optimizer: Annotated[Literal["adam", "adamw"], FIXED] = "adam"
    """adam: as in the reference; adamw: decoupled weight decay."""
    lr: Annotated[float, FIXED, Field(gt=0, le=10)] = 3e-6
    """Peak learning rate at a batch of 8, see lr_scaling."""
    lr_scaling: Annotated[Literal["linear", "sqrt", "none"], FIXED] = "linear"
    """How lr grows with global_batch_size / 8; none: lr is used as it stands."""
    schedule: Annotated[Literal["constant", "linear", "cosine"], FIXED] = "constant"
    """Decay of the learning rate after warm-up."""
    warmup_ratio: Annotated[float, FIXED, Field(ge=0, le=1)] = 0.0
    """Share of all steps in which the learning rate rises from 0."""
    head_lr_factor: Annotated[float, FIXED, Field(gt=0, le=1000)] = 1.0
    """Learning rate of projections and pair classifier, as a multiple of lr."""
    layer_decay: Annotated[float, FIXED, Field(gt=0, le=1)] = 1.0
    """Each layer of the encoder has this multiple of the learning rate of the one above."""
    weight_decay: Annotated[float, FIXED, Field(ge=0, le=1)] = 0.0
    """Weight decay (not on biases and LayerNorms)."""
    pretrained_share: Annotated[float, FIXED, Field(ge=0, lt=1)] = 0.0
    """Share of the pretrained weights in the model that is measured, mined with and saved (WiSE-FT, Wortsman et al. 2022).
    Training itself goes on from the trained weights alone."""
    clip_norm: Annotated[float, FIXED, Field(ge=0)] = 1.0
    """Largest global gradient norm; larger gradients are scaled down. 0: off."""
    max_skipped: Annotated[int, FREE, Field(ge=1)] = 10
    """Steps in a row that may be skipped because their gradient was not finite; then the run goes back to its last
    checkpoint with half the learning rate, at most max_rollbacks times."""
    max_rollbacks: Annotated[int, FREE, Field(ge=0)] = 2
    """How often a run may go back before it stops."""
    log_every: Annotated[int, FREE, Field(ge=1)] = 10
    """Write step metrics every so many optimizer steps."""

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up, scaled to the global batch (reference batch: 8)."""
        ratio = self.global_batch_size / 8
        return self.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.lr_scaling]

    def micro_batch(self, world_size: int) -> int:
        """Triplets in one forward on one rank."""
        return self.micro_batch_size or self.global_batch_size // world_size

    def accumulation(self, world_size: int) -> int:
        """Forwards in one optimizer step on one rank."""
        return self.global_batch_size // (self.micro_batch(world_size) * world_size)


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class CheckpointConfig:
    every_steps: Annotated[int, FREE, Field(ge=0)] = 0
    """Save a checkpoint after every so many steps; 0: by time and at epoch ends only."""
    every_minutes: Annotated[float, FREE, Field(ge=0)] = 30.0
    """Save a checkpoint after every so many minutes; 0: by steps and at epoch ends only."""
    keep: Annotated[int, FREE, Field(ge=1)] = 2
    """Checkpoints to keep, the newest ones; the best is kept besides."""
    placement: Annotated[Literal["rank0", "sharded"], FREE] = "rank0"
    """rank0: rank 0 collects 12 bytes a parameter and writes them in the background. sharded: every rank writes what it
    holds, and training waits; for models that rank 0 cannot hold. All nodes must share run.dir."""

    @property
    def sharded(self) -> bool:
        return self.placement == "sharded"


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class RunConfig:
    dir: Annotated[str, FREE] = ""
    """Folder of this run; empty: runs/<date>-<time>-<host>-<process>. If it holds a run, see run.resume."""
    resume: Annotated[Literal["auto", "never"], FREE] = "auto"
    """auto: go on from the newest whole checkpoint in run.dir, if there is one. never: refuse."""
    seed: Annotated[int, FIXED, Field(ge=0, lt=4_294_967_296)] = 0
    """Seed of every random stream."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class TrackingConfig:
    wandb: Annotated[Literal["auto", "online", "offline", "disabled"], FREE] = "auto"
    """Weights & Biases; auto: online if you are logged in, else offline in run.dir."""
    project: Annotated[str, FREE, Field(min_length=1)] = "counter-argument-retrieval"
    """Weights & Biases project."""
    guards: Annotated[bool, FREE] = True
    """Health guards: say what goes wrong while training, and what to try (docs/troubles.md)."""
    report: Annotated[bool, FREE] = True
    """Keep report.html in run.dir up to date: at most every three minutes, and at the end."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class DistributedConfig:
    timeout_s: Annotated[float, FREE, Field(gt=0)] = 600.0
    """Seconds after which a collective of the training step counts as hung."""
    control_timeout_s: Annotated[float, FREE, Field(gt=0)] = 86400.0
    """Seconds that the ranks wait for rank 0 to mine, evaluate or save."""
    silence_s: Annotated[float, FREE, Field(gt=5)] = 120.0
    """Seconds without a heartbeat after which a rank is given up, and named."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_strict)
class Config:
    """All settings of a run, a section for each heading of a configuration file; frozen. `load_config` makes one."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    mining: MiningConfig = Field(default_factory=MiningConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    distributed: DistributedConfig = Field(default_factory=DistributedConfig)
    deepspeed_config: Annotated[str, FREE] = "ds_configs/zero1.json"
    """DeepSpeed's own JSON: ZeRO stage, offload, buckets. Batch sizes, clipping and precision belong to train.*: they are
    left out or stay `auto`."""

    def check(self, world_size: int) -> None:
        """Raise one ConfigError that lists every contradiction between keys, for this number of ranks."""
        problems = []
        train = self.train
        micro = train.micro_batch(world_size)
        if micro == 0 or train.global_batch_size % (micro * world_size):
            per_step = f"{micro or 1} x {world_size}"
            problems.append(
                f"train.global_batch_size {train.global_batch_size} is not a multiple of micro_batch_size x ranks "
                f"({per_step} = {(micro or 1) * world_size}); choose a multiple, or another number of ranks"
            )
        loss = self.loss
        if loss.triplet_weight == loss.classification_weight == loss.contrastive_weight == 0:
            problems.append("the weights of the loss (triplet, classification, contrastive) are all 0; set one above 0")
        if self.mining.negatives == 0 and (loss.triplet_weight or loss.classification_weight):
            problems.append(
                "mining.negatives is 0, but triplet and classification loss need negatives; set their weights to 0"
            )
        if self.mining.negatives == 0 and self.mining.given == "only":
            problems.append("mining.given is only, but mining.negatives is 0; set how many given negatives a sample has")
        problems += [
            problem for problem in (self._gradient_problem, self.mining.range_problem, loss.sizes_problem) if problem
        ]
        if self.eval.metric.startswith("rerank") and not self.has_classifier:
            problems.append(
                f"eval.metric {self.eval.metric} needs a pair classifier, but loss.classification_weight is 0; choose an "
                "embedding/ metric, or set model.classifier to residual"
            )
        if self.mining.positive_share and not self.model.normalize:
            problems.append("mining.positive_share compares cosines, but model.normalize is false; set it to true")
        if self.mining.overlap and self.mining.sharded:
            problems.append("mining.overlap works on rank 0, but mining.placement is sharded; set one of them back")
        if problems:
            raise ConfigError("; ".join(problems))
        self.truncations(self.model.embedding_dim)

    @property
    def has_classifier(self) -> bool:
        """Whether there is a pair classifier to re-rank with. A loss trains it; the residual form also tells something
        without one, as its distances and hubness are fitted on validation."""
        return self.loss.classification_weight > 0 or self.model.classifier == "residual"

    def truncations(self, full: int) -> tuple[int, ...]:
        """The sizes of embeddings beside the full one, the largest first.

        Args:
            full: 0 if it is that of a model that has not been read.

        Raises:
            ConfigError: one of them is larger.
        """
        sizes = self.loss.truncations(full)
        if full and sizes and sizes[0] > full:
            raise ConfigError(
                f"loss.matryoshka_dims names {sizes[0]}, and the embeddings have {full} dimensions; name smaller ones, or "
                "raise model.embedding_dim"
            )
        return sizes

    @property
    def _gradient_problem(self) -> str:
        """Why no loss would reach projection and encoder; empty if one does."""
        loss = self.loss
        if (
            not loss.classification_weight
            or loss.triplet_weight
            or loss.contrastive_weight
            or self.model.classifier_gradient
        ):
            return ""
        return (
            "model.classifier_gradient is 0 and no other loss has a weight, so the projection would learn nothing; raise "
            "it, or give loss.contrastive_weight a value"
        )

    def check_data(self, num_training_pairs: int) -> None:
        """Raise a ConfigError if the training split does not fill one global batch."""
        if num_training_pairs < self.train.global_batch_size:
            raise ConfigError(
                f"train.global_batch_size {self.train.global_batch_size} is more than the {num_training_pairs} training "
                "pairs; choose a smaller batch"
            )

    @property
    def can_be_prolonged(self) -> bool:
        """Whether no learning rate depends on how many steps the run has."""
        return self.train.schedule == "constant" and self.train.warmup_ratio == 0

    def flat(self) -> dict[str, Any]:
        """Dotted key → value, in the order of the sections."""
        return dict(_flatten(dataclasses.asdict(self)))


def resume_rules() -> dict[str, OnResume]:
    """Dotted key → whether a resume may change it, as its field says."""

    def walk(section: type, prefix: str) -> Iterator[tuple[str, OnResume]]:
        for name, hint in get_type_hints(section, include_extras=True).items():
            if dataclasses.is_dataclass(hint):
                yield from walk(hint, f"{prefix}{name}.")  # type: ignore[arg-type]  # a section's class
            else:
                (rule,) = (mark for mark in hint.__metadata__ if isinstance(mark, OnResume))
                yield prefix + name, rule

    return dict(walk(Config, ""))


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
