"""What a job will do, settled and checked before anything is built or written: one plan for train, preflight and doctor.

    plan = make_plan(config, world)      # every rank takes part, and gets an equal plan

`read_configuration`, `read_data` and `read_model` are its parts that need no other rank; preflight tries them one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from biencoder.config.schema import Config
from biencoder.data import Dataset, load_dataset
from biencoder.data.records import Findings
from biencoder.distributed.world import World
from biencoder.mining.given import check_given
from biencoder.model.pretrained import Pretrained, load_pretrained
from biencoder.model.truncation import Truncation
from biencoder.model.vocabulary import check_corpus
from biencoder.training.engine.memory import check_mining_memory
from biencoder.training.engine.precision import Precision, precision_of_auto
from biencoder.training.engine.settings import Settings, precision_of, read_settings
from biencoder.training.recovery.out_of_memory import within_bound
from biencoder.training.recovery.run_folder import run_folder
from biencoder.training.same_input import WEIGHTS, check_same, configuration_facts, input_facts


@dataclass(frozen=True, slots=True)
class Plan:
    """Equal on every rank."""

    config: Config
    """With a micro-batch that fits the GPU, as far as earlier starts have found out."""
    requested: Config
    """As the user gave it, with the model's prompts."""
    folder: Path
    """Of the run."""
    settings: Settings
    """Of DeepSpeed."""
    fastest: Precision
    """What rank 0's device computes fastest; fp32 where that is set."""
    dataset: Dataset
    pretrained: Pretrained
    start: str
    """Hash of what the towers start from; where a projection is drawn, with the version that draws it."""
    mining: str
    """One line on the memory that mining takes."""

    @property
    def precision(self) -> Precision:
        return precision_of(self.settings)

    @property
    def identity(self) -> dict[str, str]:
        """What must be as it was when the run goes on from a checkpoint, beside the settings that are FIXED."""
        start = {"start": self.start} if self.config.train.pretrained_share else {}  # else the checkpoint has what counts
        return {"fingerprint": self.dataset.fingerprint, "precision": self.precision, **start}

    @property
    def truncation(self) -> Truncation:
        """The sizes of embeddings that are trained and measured beside the full one."""
        model = self.config.model
        return Truncation(self.config.truncations(model.embedding_dim), model.normalize)

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(self.dataset, self.config)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the whole run."""
        train = self.config.train
        steps = train.epochs * self.epoch_steps
        return min(steps, train.max_steps) if train.max_steps else steps

    @property
    def num_epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.last_step / self.epoch_steps)


def make_plan(config: Config, world: World) -> Plan:
    """Check and read all that a run needs. Every rank takes part.

    Raises:
        PeerError, ConfigError: on every rank, where a key, the data, the model or the memory does not allow the run, or
            where two ranks do not work on the same.
    """
    check_same(world, configuration_facts(config))
    world.together(lambda: config.check(world.size))
    folder, requested = world.on_main(lambda: run_folder(config)), config
    config = world.on_main(lambda: within_bound(folder, requested, world_size=world.size))
    fastest = world.on_main(lambda: precision_of_auto(config.train.precision, world.device))
    settings = world.together(lambda: read_configuration(config, world.size, fastest=fastest))
    dataset = world.together(lambda: read_data(config))
    pretrained = world.together(lambda: read_model(config, dataset.texts, dataset.findings))
    facts = input_facts(dataset, pretrained, settings)
    check_same(world, facts)
    dataset.texts.share(world)
    config, requested = (replace(given, model=pretrained.settled(given.model)) for given in (config, requested))
    num_texts, hidden = len(dataset.splits["training"].text_ids), pretrained.encoder.config.hidden_size
    world.together(lambda: config.truncations(config.model.embedding_dim))
    mining = world.together(lambda: check_mining_memory(config, world, num_texts=num_texts, hidden=hidden))
    return Plan(
        config,
        requested,
        folder,
        settings,
        fastest,
        dataset,
        pretrained,
        _start(config, pretrained, facts[WEIGHTS]),
        mining,
    )


def _start(config: Config, pretrained: Pretrained, digest: str) -> str:
    given = pretrained.projection_DH is not None
    drawn = not given and config.model.embedding_dim != pretrained.encoder.config.hidden_size
    return f"{digest}, torch {torch.__version__}" if drawn else digest


def read_configuration(config: Config, world_size: int, *, fastest: Precision) -> Settings:
    """DeepSpeed's settings of this configuration.

    Args:
        fastest: the precision to take where the configuration leaves it open.

    Raises:
        ConfigError: two keys contradict each other, or DeepSpeed's file cannot be used.
    """
    config.check(world_size)
    return read_settings(config, world_size, fastest=fastest)


def read_data(config: Config) -> Dataset:
    """
    Raises:
        DataError: the corpus cannot be read, or lacks negatives that it should give.
        ConfigError: it does not fill one global batch.
    """
    data, given = config.data, config.mining.given != "off"
    dataset = load_dataset(
        data.root,
        clean=data.clean,
        columns=data.columns,
        corpus=data.corpus,
        candidates=data.candidates,
        given=given,
    )
    check_given(dataset, config.mining)
    config.check_data(len(dataset.splits["training"]))
    return dataset


def read_model(config: Config, texts: Sequence[str], findings: Findings) -> Pretrained:
    """
    Args:
        texts: of the corpus.
        findings: takes what the tokenizer finds odd in them.

    Raises:
        ModelError, DataError: the model cannot be loaded, or its tokenizer does not know the corpus's words.
    """
    pretrained = load_pretrained(config.model)
    name = f"model.name {config.model.name}"
    check_corpus(texts, pretrained.tokenizer, findings, root=config.data.root, name=name)
    return pretrained


def steps_per_epoch(dataset: Dataset, config: Config) -> int:
    return len(dataset.splits["training"]) // config.train.global_batch_size
