"""Train a counter-argument bi-encoder.

python launcher/train.py --config configs/quickstart.toml
torchrun --nproc_per_node=2 launcher/train.py --config configs/quickstart.toml --train.lr 1e-5
deepspeed launcher/train.py --deepspeed_config ds_configs/zero2_bf16.json --data.root DIR
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.entry import parse_config, run

if TYPE_CHECKING:
    from biencoder.config import Config
    from biencoder.distributed import World


def main(argv: Sequence[str]) -> None:
    config = parse_config(argv, prog="train.py", description="Train a counter-argument bi-encoder.")
    # Heavy imports come after the arguments: `--help` and a misspelt key answer at once.
    from biencoder.distributed import world

    limits = config.distributed
    with world(timeout_s=limits.timeout_s, control_timeout_s=limits.control_timeout_s, silence_s=limits.silence_s) as ranks:
        train(config, ranks)


def train(config: "Config", world: "World") -> None:
    """Check everything, build everything, then `fit`. Nothing is written before all checks have passed."""
    from biencoder.data import load_dataset
    from biencoder.engine import Engine, read_settings
    from biencoder.export import save_model
    from biencoder.loop import Run, fit, total_steps
    from biencoder.memory import check_mining_memory
    from biencoder.model import build_model
    from biencoder.pretrained import load_pretrained
    from biencoder.run_folder import create_run_folder, model_card
    from biencoder.tokens import tokenize
    from biencoder.tracking import open_tracker
    from biencoder.tracking.names import Metrics
    from biencoder.tracking.terminal import Terminal

    terminal = Terminal(is_main=world.is_main)
    world.together(lambda: config.check(world.size))
    settings = world.together(lambda: read_settings(config, world.size))
    dataset = world.together(lambda: load_dataset(config.data.root, clean=config.data.clean))
    world.together(lambda: config.check_data(len(dataset.splits["training"])))
    pretrained = world.together(lambda: load_pretrained(config.model))
    hidden, training = pretrained.encoder.config.hidden_size, dataset.splits["training"]
    mining = world.together(lambda: check_mining_memory(config, world, num_texts=len(training.text_ids), hidden=hidden))
    folder = world.on_main(lambda: create_run_folder(config, dataset, world_size=world.size))

    terminal.findings(dataset.findings)
    terminal.opening(config, dataset, world, folder, mining=mining)
    tokens = tokenize(dataset.texts, pretrained.tokenizer, max_length=config.model.max_length)
    model = build_model(config.model, pretrained, seed=config.run.seed)
    engine = Engine(model, config.train, settings, world, total_steps(dataset, config))
    tracker = world.together(lambda: open_tracker(config.tracking, folder, config.flat(), is_main=world.is_main))

    def save(name: str, metrics: Metrics) -> None:
        weights = engine.weights()  # every rank takes part
        world.on_main(
            lambda: save_model(
                folder / "model" / name,
                model,
                weights or {},
                pretrained.tokenizer,
                config.model,
                card=model_card(config, dataset, metrics, step=engine.steps),
            )
        )

    fit(Run(config, world, dataset, tokens, engine, tracker, terminal, save))
    tracker.close()
    terminal.closing(folder, config)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
