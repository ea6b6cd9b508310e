"""Write a trained model for ONNX Runtime, and say what that loses and gains; or put it on the Hugging Face hub.

python launcher/export.py --model runs/RUN/model/best --out FOLDER --int8 --data.root DIR
python launcher/export.py --model runs/RUN/model/best --push OWNER/NAME
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from biencoder.config.paths import user_path
from biencoder.errors import ConfigError
from launcher.entry import add_dim, as_read, cleans, corpus_parser, run

if TYPE_CHECKING:
    from biencoder.tracking.terminal import Terminal

_SAMPLE = "examples/debates"
"""Whose texts are encoded for comparison where no corpus is given."""


def main(argv: Sequence[str]) -> None:
    arguments = parse(argv)
    from biencoder.model.hub import check_push
    from biencoder.tracking.terminal import Terminal

    terminal = Terminal(is_main=True)
    if arguments.push:
        check_push(user_path(arguments.model), arguments.push)
    if arguments.out:
        write(arguments, terminal)
    if arguments.push:
        publish(arguments, terminal)


def write(arguments: argparse.Namespace, terminal: "Terminal") -> None:
    """The model for ONNX Runtime, compared with itself."""
    import torch

    from biencoder.data import load_dataset
    from biencoder.evaluation.fidelity import Encoder, check, compare
    from biencoder.evaluation.tables import agreements_table
    from biencoder.model.whole_folder import output_folder, whole_folder
    from biencoder.retrieval.onnx_model import FACTS, OnnxModel, need_packages, write_onnx
    from biencoder.retrieval.trained_model import TrainedModel

    need_packages()
    model_folder = user_path(arguments.model)
    folder = output_folder(arguments.out, FACTS)
    clean, trusted, dim = cleans(arguments.clean, [arguments.model]), arguments.trust_remote_code, arguments.dim
    read: dict[str, Any] = as_read(arguments) if arguments.data_root else {}
    dataset = load_dataset(arguments.data_root or _SAMPLE, clean=clean, needs_training=False, **read)
    split = dataset.splits[dataset.deciding_split]
    model = TrainedModel.load(arguments.model, precision="fp32", trust_remote_code=trusted, dim=dim)
    model = replace(model, model=model.model.cpu(), device=torch.device("cpu"))

    with whole_folder(folder) as fresh:
        write_onnx(fresh, model_folder, int8=arguments.int8, trust_remote_code=trusted, dim=dim)
        variants = {"ONNX": False, "ONNX int8": True} if arguments.int8 else {"ONNX": False}
        encoders: dict[str, Encoder] = {"PyTorch": model} | {
            name: OnnxModel.load(fresh, model.tokenizer, model.config, int8=int8) for name, int8 in variants.items()
        }
        terminal.say(f"comparing {', '.join(encoders)} on {len(split.text_ids):,} texts")
        with terminal.work("comparing"):
            rows = compare(encoders, dataset.texts, split.text_ids, split if arguments.data_root else None)
        check(rows[1])
    files = [model_folder.rglob("model.safetensors"), folder.glob("*[!8].onnx"), folder.glob("*.int8.onnx")]
    terminal.show(agreements_table(rows, [sum(path.stat().st_size for path in some) for some in files], split.name))
    terminal.say(f"The ONNX graphs are in {folder}; its README.md says how they are used.")


def publish(arguments: argparse.Namespace, terminal: "Terminal") -> None:
    """The model's folder, as sentence-transformers loads it, on the hub."""
    from biencoder.model.hub import push

    terminal.say(f"pushing {arguments.model} to {arguments.push}")
    pushed = push(user_path(arguments.model), arguments.push, private=arguments.private)
    seen = "private" if pushed.private else "public: everybody can load it"
    terminal.say(f"The model is at {pushed.url}; the repository is {seen}.")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = corpus_parser(
        prog="export.py",
        description="Write a trained model for ONNX Runtime, and compare it with the model: on embedded texts, or with\n"
        "--data.root on a corpus, and there in accuracy as well. Or put it on the Hugging Face hub, with --push.",
        example="--model runs/RUN/model/best --out onnx",
    )
    parser.set_defaults(data_root=None)
    parser.add_argument("--model", required=True, metavar="DIR", help="an exported model, say runs/RUN/model/best")
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="where the ONNX graphs go; an export that is there is replaced"
    )
    add_dim(parser)
    parser.add_argument("--int8", action="store_true", help="also with weights of 8 bits: smaller, quicker, less exact")
    parser.add_argument(
        "--push",
        default="",
        metavar="OWNER/NAME",
        help="put the model's folder on the hub, where sentence-transformers loads it from; a new repository is public\n"
        "unless the owner's settings on the hub, or --private, say otherwise",
    )
    parser.add_argument("--private", action="store_true", help="with --push: for the owner's eyes only")
    arguments = parser.parse_args(argv)
    if not arguments.out and not arguments.push:
        raise ConfigError("nothing to write: give --out FOLDER for ONNX, or --push OWNER/NAME for the hub")
    if arguments.private and not arguments.push:
        raise ConfigError("--private belongs to --push OWNER/NAME, which is not given")
    if (arguments.int8 or arguments.dim) and not arguments.out:
        raise ConfigError("--int8 and --dim belong to --out FOLDER, which is not given")
    return arguments


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
