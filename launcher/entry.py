"""What all commands share: arguments, quiet libraries, and one readable sentence for each error.

The exit codes stand in `biencoder/errors.py`.
"""

import argparse
import atexit
import gc
import io
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from biencoder import environment
from biencoder.config.keys import choices, describe, nearest_key
from biencoder.config.paths import typed, user_path
from biencoder.errors import BiencoderError, ConfigError, ExitCode, tell

if TYPE_CHECKING:
    from biencoder.config.schema import Config

_LET_RANK_0_SPEAK_S = 3.0
"""Launchers end all ranks as soon as the first one leaves: the others stay until rank 0 has said why."""


class Parser(argparse.ArgumentParser):
    """Whose errors are one sentence, and whose help begins with an example."""

    def __init__(self, *, example: str = "", **settings: Any) -> None:
        """
        Args:
            example: arguments that do something useful.
        """
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter, **settings)
        self._example = example

    def format_help(self) -> str:
        command = shlex.join(typed(self.prog.removesuffix(".py")))
        return f"example: {command} {self._example}\n\n{super().format_help()}" if self._example else super().format_help()

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True)
class RunArguments:
    config: "Config"
    preflight: bool
    """Whether the job is only to be checked."""


def parse_run(argv: Sequence[str], *, prog: str, description: str, example: str = "") -> RunArguments:
    """The run's configuration from `--config FILE` and dotted overrides such as `--train.lr 1e-5`, and `--preflight`."""
    usage = "%(prog)s [--config FILE] [--SECTION.KEY VALUE ...] [--preflight]"
    parser = Parser(prog=prog, description=description, example=example, usage=usage)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML or YAML file with any of the keys below")
    parser.add_argument(
        "--preflight", action="store_true", help="check ranks, network, data, memory and disk; print a table; train nothing"
    )
    # Launchers add these two; DeepSpeed's own convention is `--deepspeed --deepspeed_config FILE`.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)
    keys = describe()
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, (text, allowed, default) in keys.items():
        section = name.split(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        shown = str(default).lower() if isinstance(default, bool) else default
        summary = f"{text}\n[{allowed}; default: {shown if shown != '' else 'empty'}]".replace("%", "%%")
        groups[section].add_argument(f"--{name}", dest=name, metavar="VALUE", help=summary, default=argparse.SUPPRESS)
    known, unknown = parser.parse_known_args(argv)
    for token in unknown:
        name = token.split("=")[0].lstrip("-")
        if not token.startswith("-"):
            raise ConfigError(f"unexpected argument {token!r}; settings are given as --section.key VALUE")
        raise ConfigError(f"unknown key `{name}`; the nearest valid one is `{nearest_key(name)}`")
    from biencoder.config.load import load_config

    overrides = {name: value for name, value in vars(known).items() if name in keys}
    return RunArguments(load_config(file=known.config, overrides=overrides), known.preflight)


def corpus_parser(*, prog: str, description: str, example: str) -> Parser:
    """What the commands that read a corpus beside a model have in common: data_root, what `as_read` takes, clean, and
    trust_remote_code."""
    parser = Parser(prog=prog, description=description, example=example)
    root = default("data.root")
    parser.add_argument("--data.root", dest="data_root", default=root, metavar="PATH", help=f"the corpus [default: {root}]")
    parser.add_argument(
        "--data.columns",
        dest="data_columns",
        default="",
        metavar="ROLE=COLUMN,…",
        help="its columns, such as point=title,counter=body [default: the names in use]",
    )
    parser.add_argument(
        "--data.corpus",
        dest="data_corpus",
        default="",
        metavar="PATH,…",
        help="tables of further texts, which belong to no pair [default: none]",
    )
    parser.add_argument(
        "--data.candidates",
        dest="data_candidates",
        default=default("data.candidates"),
        choices=choices("data.candidates"),
        help="what can be retrieved: also the points of pairs (auto), or their counters alone [default: auto]",
    )
    parser.add_argument(
        "--clean",
        action=argparse.BooleanOptionalAction,
        help="drop what gives matches away, or take the texts as they stand [default: as the model was trained]",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the model's folder holds; it may do whatever you may, so read it first",
    )
    return parser


def as_read(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the corpus of a command line is read: keywords of `load_dataset` and `load_texts`."""
    return {name: getattr(arguments, f"data_{name}") for name in ("columns", "corpus", "candidates")}


def default(key: str) -> Any:
    """The default of a setting."""
    return describe()[key][2]


def cleans(told: bool | None, models: Iterable[str]) -> bool:
    """Whether the texts of a corpus, and queries to it, are to be cleaned: as told, else as in the training of the models.

    Raises:
        ConfigError: nothing was told, and the models differ.
        ModelError: a model folder is damaged.
    """
    if told is not None:
        return told
    from biencoder.model.folder import trained_on_clean_texts

    trained = {trained_on_clean_texts(user_path(model)) for model in models} or {default("data.clean")}
    if len(trained) > 1:
        raise ConfigError(
            "some of the models were trained on cleaned texts, some on texts as they stand; "
            "say which to take, with --clean or --no-clean"
        )
    return trained.pop()


def model_parser(*, prog: str, description: str, example: str) -> Parser:
    """What the commands that rank with trained models have in common: those of `corpus_parser`, precision, and top_k."""
    parser = corpus_parser(prog=prog, description=description, example=example)
    add_precision(parser)
    add_dim(parser)
    parser.add_argument(
        "--top-k", type=_top_k, default=default("eval.top_k"), metavar="K", help="candidates to re-rank or show"
    )
    return parser


def add_precision(parser: Parser) -> None:
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="what encoders compute in; auto: bf16 on GPUs from Ampere on and on CPUs with AMX or AVX512-BF16, else fp32 "
        "[default: auto]",
    )


def add_dim(parser: Parser) -> None:
    parser.add_argument(
        "--dim",
        type=_dim,
        default=0,
        metavar="N",
        help="take the first N dimensions of the embeddings alone, of a model trained with loss.matryoshka_dims, and no\n"
        "pair classifier [default: all]",
    )


def _top_k(text: str) -> int:
    return _at_least_1("--top-k", text)


def _dim(text: str) -> int:
    return _at_least_1("--dim", text)


def _at_least_1(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name} is {text}, expected an integer >= 1")
    return int(text)


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Imports a tenth faster: they make a million objects that stay, and the garbage collector would look at them over and
    over again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def leave(exit_code: int) -> NoReturn:
    """End the process without taking Python down: a collective's threads, still alive, would abort it with a code of their
    own."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its disk is full: whoever wrote there has had the error
            stream.flush()
    os._exit(exit_code)


def interrupt_once() -> None:
    """Let Ctrl-C raise KeyboardInterrupt once; the next one ends the process at once, whatever it still waits for."""

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(ExitCode.INTERRUPTED))
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where nohup or a shell has it ignored
        signal.signal(signal.SIGINT, first)


def run(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command and leave the process with its exit code; user errors are one sentence, printed once per job."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its escape
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # opened for reading as well, on a pipe
                stream.reconfigure(errors="backslashreplace")
    interrupt_once()
    try:
        command(sys.argv[1:])
    except BiencoderError as error:
        speaks = environment.is_main_rank()
        if speaks:
            tell(f"{error.kind}: {error}")
        else:
            time.sleep(_LET_RANK_0_SPEAK_S)
        leave(error.exit_code)
    except KeyboardInterrupt:
        leave(ExitCode.INTERRUPTED)
    except Exception:  # noqa: BLE001 - the last resort: say where it happened, once, and leave
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(ExitCode.FAILED)  # threads of broken collectives must not hold up the exit
    leave(ExitCode.DONE)
