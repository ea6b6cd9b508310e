"""Puts the parts of a run together, as the plan says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from biencoder.data import Forbidden
from biencoder.data.near_duplicates import near_duplicates
from biencoder.data.token_cache import cached_tokens
from biencoder.data.tokens import TokenizedTexts
from biencoder.distributed.stop_requests import StopRequests
from biencoder.distributed.world import World
from biencoder.mining import Clusters, Miner
from biencoder.model.bi_encoder import BiEncoder, build_model
from biencoder.model.folder import save_model
from biencoder.tracking.channel import Channel
from biencoder.tracking.names import Metrics
from biencoder.tracking.terminal import Terminal
from biencoder.tracking.tracker import Tracker, open_tracker
from biencoder.training.best_model import BestModel
from biencoder.training.engine.engine import Engine
from biencoder.training.evaluator import Evaluator
from biencoder.training.loop import Trainer
from biencoder.training.model_card import model_card
from biencoder.training.model_folders import ModelFolders, Weights
from biencoder.training.objective import Objective
from biencoder.training.plan import Plan
from biencoder.training.progress import Progress
from biencoder.training.recovery.checkpoint import CheckpointFolder
from biencoder.training.recovery.divergence import Divergence
from biencoder.training.recovery.resume import Recovery, Stateful
from biencoder.training.reranking import calibrated_classifier, judge_reranking
from biencoder.training.step import Step
from biencoder.training.window import Window


def build(
    plan: Plan,
    world: World,
    *,
    checkpoints: CheckpointFolder,
    stop: StopRequests,
    terminal: Terminal,
    facts: Mapping[str, Any],
) -> Trainer:
    """A trainer that stands before the first step. Every rank takes part.

    Args:
        facts: what Weights & Biases is to show of the run beside its configuration.
    """
    config, dataset = plan.config, plan.dataset
    training, tokenizer = dataset.splits["training"], plan.pretrained.tokenizer
    limit, prompts = config.model.max_length, config.model.prompts
    with terminal.work("tokenizing the corpus", len(dataset.texts) * len(set(prompts))) as advance:
        tokens = cached_tokens(dataset.texts, tokenizer, max_length=limit, world=world, prompts=prompts, advance=advance)
    model = build_model(config.model, plan.pretrained, seed=config.run.seed)
    engine = make_engine(plan, world, model, terminal)
    same_N = world.on_main(lambda: near_duplicates(dataset.texts)) if config.mining.exclude_near_duplicates else None
    forbidden = Forbidden.of(training, len(dataset.texts), same_N=same_N)
    miner = make_miner(plan, world, forbidden, terminal)
    clusters = None
    if config.train.batches == "clusters":
        clusters = Clusters(training, world, sharded=config.mining.sharded, seed=config.run.seed)
    tracker = world.together(lambda: make_tracker(plan, world, terminal, facts))
    step = make_step(plan, world, engine, tokens, forbidden)
    evaluator = make_evaluator(plan, world, engine, tokens, tracker, terminal)
    models = ModelFolders(plan.folder, world, engine, model_writer(plan, model))
    best = BestModel(models, tracker, metric=f"eval/{dataset.deciding_split}/{config.eval.metric}")
    progress, window, divergence = Progress(), Window(world), Divergence(engine, training, config.train)
    owners: list[Stateful] = [divergence, window, miner, *([clusters] if clusters else [])]
    recovery = Recovery(checkpoints, config, plan.identity, world, engine, progress, best, owners, tracker, stop)
    return Trainer(
        plan,
        world,
        step,
        miner,
        clusters,
        evaluator,
        best,
        models,
        window,
        divergence,
        recovery,
        progress,
        stop,
        tracker,
        terminal,
    )


def make_engine(plan: Plan, world: World, model: BiEncoder, terminal: Terminal) -> Engine:
    engine = Engine(model, plan.config.train, plan.settings, world, plan.last_step)
    if world.device.type == "cuda":
        because = engine.padded_because
        terminal.say(f"texts    padded: {because}" if because else "texts    packed one after the other, without padding")
    return engine


def make_miner(plan: Plan, world: World, forbidden: Forbidden, terminal: Terminal) -> Miner:
    training, seed = plan.dataset.splits["training"], plan.config.run.seed
    miner = Miner(training, forbidden, world, plan.config.mining, seed=seed, num_epochs=plan.num_epochs)
    if miner.given_left_out:
        terminal.say(f"{miner.given_left_out} given negatives are near copies of right answers, and are left out")
    return miner


def make_tracker(plan: Plan, world: World, terminal: Terminal, facts: Mapping[str, Any]) -> Tracker:
    return open_tracker(
        plan.config,
        plan.folder,
        facts,
        precision=plan.precision,
        show=lambda alert, step: terminal.show(*alert.lines(step)),
        is_main=world.is_main,
    )


def make_step(plan: Plan, world: World, engine: Engine, tokens: TokenizedTexts, forbidden: Forbidden) -> Step:
    config = plan.config
    return Step(
        engine,
        Objective(config.loss, world, plan.truncation),
        tokens,
        plan.dataset.splits["training"],
        forbidden,
        world,
        micro_batch_size=config.train.micro_batch(world.size),
        seed=config.run.seed,
    )


def make_evaluator(
    plan: Plan, world: World, engine: Engine, tokens: TokenizedTexts, tracker: Tracker, terminal: Terminal
) -> Evaluator:
    config = plan.config
    return Evaluator(
        engine,
        plan.dataset,
        tokens,
        world,
        config.eval,
        tracker,
        terminal,
        sharded=config.mining.sharded,
        has_classifier=config.has_classifier,
        truncation=plan.truncation,
        has_projection=plan.pretrained.projection_DH is not None,
    )


def model_writer(plan: Plan, model: BiEncoder) -> Callable[[Path, Weights, Metrics, int], None]:
    """Writes a model of this run with its card into a folder, as `ModelFolders` wants it."""
    config, dataset = plan.config, plan.dataset

    def write(place: Path, weights: Weights, metrics: Metrics, step: int) -> None:
        if not config.has_classifier:
            weights = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
        else:
            weights = {**weights, **calibrated_classifier(model, weights, metrics)}
        card = Channel("the model card").run(lambda: model_card(config, dataset, metrics, step=step)) or ""
        save_model(
            place,
            model,
            weights,
            plan.pretrained.tokenizer,
            config.model,
            card=card,
            clean=config.data.clean,
            reranking=judge_reranking(metrics, dataset.deciding_split),
        )

    return write
