"""What a person sees: text that is not the program's own is shown as it is, and closing words that hold."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from biencoder.config import Config, DataConfig
from biencoder.data.records import Findings
from biencoder.errors import DataError
from biencoder.inference import Hit
from biencoder.tracking.terminal import Terminal
from launcher.search import lines_of


@pytest.mark.parametrize("text", ["[/b] closes nothing", "said [sic] so", "[red]alert[/red]"])
def test_brackets_are_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(is_main=True)
    terminal.found(text, [Hit(text, 0.5, 0.5)])
    findings = Findings()
    findings.add(text, text)
    terminal.findings(findings)
    terminal.evaluation(text, {})
    assert capsys.readouterr().out.count(text) == 5


def test_closing_words_name_a_model_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, config = tmp_path / "my run", Config(data=DataConfig(root="my data"))
    terminal = Terminal(is_main=True)
    terminal.closing(folder, config)
    assert "the run has left no model" in capsys.readouterr().out
    (folder / "model" / "last").mkdir(parents=True)
    terminal.closing(folder, config)
    said = capsys.readouterr().out
    assert f"{folder}/model/best is not there" in said
    assert f"--model '{folder}/model/last' --data.root 'my data' 'your argument'" in said
    (folder / "model" / "best").mkdir()
    terminal.closing(folder, config)
    assert f"The best model is in {folder}/model/best" in capsys.readouterr().out


def test_a_line_of_stdin_that_is_no_utf8_is_named() -> None:
    lines = lines_of(io.BytesIO("caf\u00e9\n".encode() + b"caf\xe9\n"))
    assert next(lines) == "caf\u00e9"
    with pytest.raises(DataError, match=r"line 2 of stdin is no UTF-8 text \(byte 4\)"):
        next(lines)


def entry(work: str, **environment: str) -> "subprocess.Popen[str]":
    code = f"import os, signal, sys, time\nfrom launcher.entry import run\ndef main(argv):\n    {work}\nrun(main)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd=Path(__file__).resolve().parents[2],
    )


def test_an_ascii_terminal_shows_what_it_can() -> None:
    out, err = (process := entry("print('caf\\u00e9 \\u2013')", PYTHONIOENCODING="ascii")).communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "caf\\xe9 \\u2013\n", "")


def test_a_second_interrupt_gives_no_traceback() -> None:
    process = entry("print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
