"""Exported graphs compute what the model does, without PyTorch; what they lose is measured rightly."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from biencoder.data import Split
from biencoder.errors import ConfigError, ModelError
from biencoder.evaluation import fidelity as onnx_check
from biencoder.evaluation.fidelity import check, compare
from biencoder.model.bi_encoder import Vectors
from biencoder.retrieval.embedding import EmbeddedTexts
from biencoder.retrieval.onnx_model import OnnxModel, need_packages, write_onnx
from biencoder.retrieval.trained_model import TrainedModel
from tests.models import export

TEXTS = ["the quick fox", "taxes rise and fall with votes against a lazy dog " * 3, "a", "the dog argues against the fox"]
EVERY = np.arange(len(TEXTS))
PROMPTS: dict[str, Any] = {"query_prompt": "point ", "document_prompt": "counter "}
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"pooling": "mean", "normalize": True},
    "heads": {"pooling": "pooler", **PROMPTS},
    "encoders": {"pooling": "cls", "normalize": True, **PROMPTS},
}


@dataclass(frozen=True)
class Exported:
    model: TrainedModel
    folder: Path
    sides: str

    def onnx(self, *, int8: bool = False) -> OnnxModel:
        return OnnxModel.load(self.folder, self.model.tokenizer, self.model.config, int8=int8)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"sides": sides, **settings}, id=sides, marks=pytest.mark.slow) for sides, settings in KINDS.items()
    ],
)
def exported(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("onnx")
    export(tiny_bert, place / "model", **request.param)
    (place / "onnx").mkdir()
    write_onnx(place / "onnx", place / "model", int8=True)
    return Exported(TrainedModel.load(str(place / "model")), place / "onnx", request.param["sides"])


def test_prompts_are_kept_with_the_graphs(exported: Exported) -> None:
    facts = json.loads((exported.folder / "onnx.json").read_text())
    assert tuple(facts[side].get("prompt", "") for side in ("query", "candidate")) == exported.model.config.prompts


def test_graphs_equal_the_model_on_both_sides(exported: Exported) -> None:
    graphs = ["query", "candidate"] if exported.sides == "encoders" else ["model"]
    assert {p.name for p in exported.folder.glob("*.onnx")} == {f"{g}{kind}.onnx" for g in graphs for kind in ("", ".int8")}
    onnx, model = exported.onnx(), exported.model
    for some in (EVERY, EVERY[1:2], EVERY[2:3]):  # other batches and lengths than the graph was traced with
        theirs, ours = onnx.embed_texts(TEXTS, some), model.embed_texts(TEXTS, some)
        torch.testing.assert_close(theirs.query.embedding, ours.query.embedding, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.candidate.embedding, ours.candidate.embedding, rtol=0, atol=1e-5)
        assert torch.equal(theirs.query.embedding, theirs.candidate.embedding) == (exported.sides == "shared")


def test_a_graph_for_both_sides_gets_each_sides_prompt(exported: Exported) -> None:
    config = replace(exported.model.config, query_prompt="dog ", document_prompt="fox ")
    model = replace(exported.model, config=config)
    onnx = OnnxModel.load(exported.folder, model.tokenizer, config, int8=False)
    theirs, ours = onnx.embed_texts(TEXTS, EVERY), model.embed_texts(TEXTS, EVERY)
    torch.testing.assert_close(theirs.query.embedding, ours.query.embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.candidate.embedding, ours.candidate.embedding, rtol=0, atol=1e-5)
    assert not torch.allclose(theirs.query.embedding, theirs.candidate.embedding, atol=1e-3)


def test_weights_of_8_bits_are_smaller_and_nearly_agree(exported: Exported) -> None:
    for file in exported.folder.glob("*.int8.onnx"):
        assert file.stat().st_size < file.with_name(file.name.replace(".int8", "")).stat().st_size
    theirs, ours = exported.onnx(int8=True).embed_texts(TEXTS, EVERY), exported.model.embed_texts(TEXTS, EVERY)
    for side in ("query", "candidate"):
        cosine_N = torch.cosine_similarity(getattr(theirs, side).embedding, getattr(ours, side).embedding)
        assert cosine_N.min() > 0.9
    assert not torch.allclose(theirs.query.embedding, ours.query.embedding, atol=1e-5)  # it is the other graph


def test_the_readme_works_without_this_program(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (exported.folder / "README.md").read_text(), re.DOTALL)[0]
    assert "biencoder" not in code
    assert "torch" not in code
    query, document = exported.model.config.prompts
    assert f'["{query}an argument"]' in code
    code = code.replace(f'["{query}an argument"]', f"[{query!r} + text for text in TEXTS]")
    code = code.replace(f'["{document}a text", "{document}another text"]', f"[{document!r} + text for text in TEXTS]")
    monkeypatch.chdir(exported.folder)
    names: dict[str, Any] = {"TEXTS": TEXTS}
    exec(code, names)
    expected = exported.model.embed_texts(TEXTS, EVERY)
    np.testing.assert_allclose(names["arguments"], expected.query.embedding.numpy(), atol=1e-5)
    np.testing.assert_allclose(names["texts"], expected.candidate.embedding.numpy(), atol=1e-5)
    cdist = torch.cdist(expected.query.embedding, expected.candidate.embedding).numpy()
    np.testing.assert_allclose(names["distances"], cdist, atol=1e-3)


def test_packages_that_are_missing_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    need_packages()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs the packages onnxruntime; pip install 'biencoder\[onnx\]'"):
        need_packages()


class OnALine:
    """Text i lies at i on the first axis; candidates are moved along the second one."""

    def __init__(self, moved: float = 0.0) -> None:
        self._moved = moved

    def embed_texts(self, texts: Sequence[str], text_ids_N: npt.NDArray[np.int64]) -> EmbeddedTexts:
        place_N = torch.from_numpy(text_ids_N).float()
        query, candidate = (
            torch.stack([place_N, torch.full_like(place_N, other)], dim=1) for other in (1, 1 + self._moved)
        )
        return EmbeddedTexts.whole(text_ids_N, Vectors(query, query), Vectors(candidate, candidate))


def test_agreement_is_the_worse_of_the_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_check, "_CHUNK", 3)  # the texts do not come all at once
    # Points 0 and 3; the nearest to 0 is its counter 1, to 3 it is 4, whose copy is not its counter 6.
    split = Split("test", (None,) * 2, np.array([0, 3]), np.array([1, 6]))  # type: ignore[arg-type]
    texts = [str(i) for i in range(8)]
    same, moved = compare({"first": OnALine(), "second": OnALine(0.25)}, texts, np.arange(8), split)
    assert (same.name, same.largest_difference) == ("first", 0.0)
    assert same.least_cosine == pytest.approx(1)
    assert moved.largest_difference == 0.25
    cosines = [(x * x + 1.25) / np.hypot(x, 1) / np.hypot(x, 1.25) for x in range(8)]
    assert moved.mean_cosine == pytest.approx(np.mean(cosines), rel=1e-6)
    assert moved.least_cosine == pytest.approx(min(cosines), rel=1e-6)
    assert moved.accuracy == {"": 0.5, "_text": 0.5}
    assert compare({"first": OnALine()}, texts, np.arange(8), None)[0].accuracy == {}
    check(same)
    with pytest.raises(ModelError, match=r"does not compute what the model does \(cosine 0\.98"):
        check(replace(moved, least_cosine=0.98))
    with pytest.raises(ModelError):
        check(replace(moved, least_cosine=float("nan")))
