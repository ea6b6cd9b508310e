"""A model is exported to ONNX and compared with itself, as a user asks for it."""

import sys
from pathlib import Path

import pytest

from biencoder.errors import BiencoderError
from biencoder.evaluation import fidelity as onnx_check
from launcher.export import main
from tests.commands import run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.models import export

pytestmark = pytest.mark.e2e


def test_an_export_says_what_it_loses_and_gains(tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path) -> None:
    corpus, model, folder = write_corpus(numbered_corpus(training=0, validation=13)), tmp_path / "model", tmp_path / "onnx"
    export(tiny_bert, model, sides="heads", pooling="mean", normalize=True)
    command = ["launcher/export.py", "--model", str(model), "--out", str(folder), "--int8"]
    command += ["--dim", "4", "--data.root", str(corpus)]
    done = run([sys.executable, *command])
    assert (done.returncode, done.stderr) == (0, "")
    assert "comparing PyTorch, ONNX, ONNX int8 on 26 texts" in done.stdout
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "model.int8.onnx", "tokenizer.json", "onnx.json", "README.md")
    }
    rows = {
        name: [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")][-1].removeprefix(name).split()
        for name in ("PyTorch", "ONNX int8", "ONNX")
    }
    rows["ONNX"] = next(line for line in done.stdout.splitlines() if line.startswith("ONNX  ")).split()[1:]
    size = (folder / "model.onnx").stat().st_size / 2**20
    assert float(rows["ONNX"][0]) == pytest.approx(size, abs=0.06)
    assert rows["PyTorch"][2] == "1.00"
    assert float(rows["ONNX"][3]) < 1e-5 < float(rows["ONNX int8"][3])
    assert rows["ONNX"][4:6] == ["1.0000", "1.0000"]
    assert rows["ONNX"][6:] == rows["PyTorch"][6:]  # accuracy, strict and with copies as one
    assert len(rows["ONNX int8"]) == 8

    evaluated = run(
        [sys.executable, "launcher/evaluate.py", "--model", str(model), "--dim", "4", "--data.root", str(corpus)]
    )
    row = next(line for line in evaluated.stdout.splitlines() if line.startswith("model "))
    assert float(row.split()[1].split("/")[0]) == pytest.approx(float(rows["PyTorch"][6]), abs=0.06)  # one digit fewer


def test_what_does_not_compute_the_same_is_not_kept(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tiny_bert, tmp_path / "model")
    monkeypatch.setattr(onnx_check, "_LEAST_COSINE", 1.1)
    with pytest.raises(BiencoderError, match="so nothing was written"):
        main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "onnx")])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "comparing PyTorch, ONNX on 72 texts" in capsys.readouterr().out  # of the embedded debates


def test_a_folder_of_somebody_else_and_a_missing_package_are_one_sentence(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tiny_bert, tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "model")]
    with pytest.raises(BiencoderError, match=r"is no output of this command \(it has no onnx.json\)"):
        main(command)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BiencoderError, match=r"pip install 'biencoder\[onnx\]'"):
        main(command)
