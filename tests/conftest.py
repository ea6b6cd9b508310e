"""Shared fixtures: a tiny BERT with a tokenizer of its own, and small corpora in the ArguAna layout."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import SHARED, Server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
if os.environ.get("TEST_ON_GPU") != "1":  # tests/gpu wants it; everything else compares with what a CPU computes
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores, and one thread makes one order of sums

gc.disable()  # imports make a million objects that stay: collections would go over them again and again

WriteCorpus = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _trained_models_compute_in_fp32() -> Iterator[None]:
    """Also on processors where bf16 is fast: most tests compare their vectors with others'."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for instructions in ("amx_tile", "avx512_bf16"):
            patch.setattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)
        yield


_SHARED: list[Server] = []
_RINGS = ("cluster", "e2e", "ranks", "gpu", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What mostly waits begins first, so that other tests run meanwhile; the shortest tests fill up the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rings = {path: _RINGS.index(path.relative_to(Path(__file__).parent).parts[0]) for path in {i.path for i in items}}
    items.sort(key=lambda item: (rings[item.path], item.path not in slow))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[SHARED] = str(Path(tempfile.mkdtemp()) / "server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """One fork server for all workers, where their tests need one."""
    if not _SHARED and any(not item.startswith("tests/unit/") for item in ids):
        _SHARED.append(Server(shared=True))


def pytest_unconfigure(config: pytest.Config) -> None:
    for shared in _SHARED:
        shared.close()
    if SHARED in os.environ and not hasattr(config, "workerinput"):
        shutil.rmtree(Path(os.environ[SHARED]).parent, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With several workers (`pytest -n 4 --dist loadscope`): files whose tests share nodes or fixtures are not divided."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("::")[0] if nodeid.startswith(("tests/cluster/", "tests/unit/")) else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenizations are not put among the user's own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer and 32 dimensions with random weights, saved as a transformers folder."""
    return _write_bert(tmp_path_factory.mktemp("tiny-bert"), layers=1)


@pytest.fixture(scope="session")
def two_layer_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two layers, for what tells layers apart."""
    return _write_bert(tmp_path_factory.mktemp("two-layer-bert"), layers=2)


def _write_bert(folder: Path, *, layers: int) -> Path:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = "the quick brown fox argues against a lazy dog taxes rise and fall with votes point counter".split()
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = [*special, *dict.fromkeys([*words, *characters]), *(f"##{character}" for character in characters)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name[1:-1].lower()}_token": name for name in special},
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """A function that writes {(split, theme, debate, stance, number, kind): text} as an ArguAna folder."""

    def write(arguments: dict[tuple[str, str, str, str, int, str], str], folder: str = "corpus") -> Path:
        root = tmp_path / folder
        for (split, theme, debate, stance, number, kind), text in arguments.items():
            letter = "a" if kind == "point" else "b"
            path = root / split / theme / debate / stance / f"{stance}{number:02d}{letter}-{kind}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return write


def numbered_corpus(*, training: int, validation: int = 4) -> dict[tuple[str, str, str, str, int, str], str]:
    """Pairs of short distinct texts, for `write_corpus`."""
    words = ["fox", "dog", "taxes", "votes", "quick", "lazy", "brown", "argues"]
    return {
        (split, "theme", f"debate-{i // 6}", "pro", i % 6, kind): f"{words[i % 8]} {words[i // 8 % 8]} {kind} {i}"
        for split, count in (("training", training), ("validation", validation))
        for i in range(count)
        for kind in ("point", "counter")
    }
