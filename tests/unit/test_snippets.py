"""Whatever the documents show can be typed: commands parse, keys exist, files are there, recipes load.

tests/e2e/test_snippets.py runs what is cheap; `ELSEWHERE` names the tests that run what needs a cluster or a network.
"""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from biencoder.config.load import load_config
from biencoder.config.schema import Config
from launcher import evaluate, export, index, search, sweep
from launcher.entry import parse_run
from tests.snippets import COMMANDS, PAGES, ROOT, Snippet, commands, launched, snippets

ELSEWHERE = {
    "sbatch": "tests/cluster/slurm.py",
    "torchrun": "tests/cluster/test_two_nodes.py",
    "deepspeed": "tests/e2e/test_launch.py",
    "pip": "tests/e2e/test_wheel.py",
    "wandb": "tests/e2e/test_wandb.py",
}
"""Programs that only these tests run."""
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "search": search.parse,
    "index": index.parse,
    "evaluate": evaluate.parse,
    "export": export.parse,
}
FOLDERS = ("configs", "ds_configs", "examples", "launcher", "slurm", "benchmarks", "docs", "tests", "biencoder")
MADE = {"biencoder/shipped", "benchmarks/results"}
"""Folders that a build or a benchmark makes."""
KEY = re.compile(rf"(?:--)?((?:{'|'.join(name for name in Config.__dataclass_fields__)})\.[a-z_]+)(?: .*)?")
SUFFIXES = {"py", "json", "jsonl", "md", "toml", "csv", "parquet", "safetensors", "onnx", "log", "yaml"}


def test_other_programs_are_run_by_the_tests_that_are_named() -> None:
    assert [name for name, file in ELSEWHERE.items() if name not in (ROOT / file).read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("block", snippets("bash"), ids=str)
def test_commands_parse(block: Snippet) -> None:
    for words in commands(block):
        check(words)
        for word in words:
            if re.match(rf"({'|'.join(FOLDERS)})/\S+$", word) and "*" not in word:
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_begins_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"launcher.{name}").main(["--help"])
    example, empty, usage, *_ = capsys.readouterr().out.splitlines()
    words = shlex.split(example.removeprefix("example: "))
    assert launched(words) == (name, words[2:])
    assert (empty, usage.split()[:2]) == ("", ["usage:", f"{name}.py"])
    check(words)


def check(words: list[str]) -> None:
    """Fails unless the command means something: its options exist, and so do the settings and files that it names."""
    own = launched(words)
    program = Path(words[0]).name
    if own:
        check_launcher(*own)
    elif program in ("torchrun", "deepspeed", "sbatch"):
        check_started(program, words[1:])
    elif program == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
    elif program == "python":
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        assert [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source] == []
    else:
        assert program in ELSEWHERE, words


def check_launcher(name: str, arguments: list[str], *, ranks: int = 1) -> None:
    if name == "train" or (name == "doctor" and arguments[0].startswith("-")):
        config = parse_run(arguments, prog=name, description="").config
        config.check(ranks)
        assert (ROOT / config.deepspeed_config).is_file()
    elif name == "sweep":
        end = arguments.index("--") if "--" in arguments else len(arguments)
        sweep.parse(arguments[:end])
        sweep.resolve(arguments[end + 1 :])
    elif name in PARSERS:
        PARSERS[name](arguments)
    else:
        source = (ROOT / f"launcher/{name}.py").read_text(encoding="utf-8")
        assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in source] == []


def check_started(program: str, words: list[str]) -> None:
    """What stands before the script is read by the launcher's own parser, what follows it by ours."""
    at = next(i for i, word in enumerate(words) if word.endswith(("train.py", "train.sh", "deepspeed.sh")))
    own, script, arguments = words[:at], words[at], words[at + 1 :]
    if script == "train.py":  # a script of somebody else
        return
    ranks = 1
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args([*own, script])
        ranks = int(parsed.nproc_per_node) * int(parsed.nnodes.split(":")[-1])
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        assert isinstance(parse_args([*own, script]), argparse.Namespace)
    check_launcher("train", arguments, ranks=ranks)


@pytest.mark.parametrize("block", snippets("toml"), ids=str)
def test_configurations_load(block: Snippet, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(block.text, encoding="utf-8")
    load_config(file=file).check(world_size=1)


@pytest.mark.parametrize("block", snippets("python"), ids=str)
def test_programs_compile(block: Snippet) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_and_files_in_the_text_exist(page: Path) -> None:
    codes = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE))
    named = {key[1] for code in codes if (key := KEY.fullmatch(code))}
    assert {key for key in named if key.split(".")[1] not in SUFFIXES} - set(Config().flat()) == set()
    files = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", " ".join(codes))
    assert [file for file in files if not (ROOT / file).exists() and file not in MADE] == []
