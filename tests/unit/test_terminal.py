"""What a person sees: text that is not the program's own is shown as it is, and closing words that hold."""

import io
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from biencoder.config.load import load_config
from biencoder.config.paths import typed
from biencoder.config.schema import SPLITS, Config, DataConfig, ModelConfig, RunConfig
from biencoder.data import load_dataset
from biencoder.data.records import Findings
from biencoder.errors import DataError
from biencoder.evaluation.tables import hits_table
from biencoder.retrieval.trained_model import Hit
from biencoder.tracking.channel import Channel, protected
from biencoder.tracking.console import plain_console
from biencoder.tracking.guards import Alert
from biencoder.tracking.terminal import Terminal, duration
from biencoder.training.evaluation_table import evaluation_table
from biencoder.training.metrics import step_note
from biencoder.training.opening import checks_table, closing_line, findings_table, run_line, too_many_for_hubness, ungrouped
from biencoder.training.preflight.judgements import CheckResult
from biencoder.training.sweep import Trial, ranking_table
from launcher.search import arguments_of, lines_of, parse
from tests.commands import wait_for


@pytest.mark.parametrize("text", ["[/b] closes nothing", "said [sic] so", "[red]alert[/red]"])
def test_brackets_are_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(is_main=True)
    terminal.show(hits_table(text, [Hit(text, 0.5, 0.5)], probabilities=True))
    findings = Findings()
    findings.add(text, text)
    terminal.show(*findings_table(findings))
    terminal.show(*evaluation_table([(text, {})]))
    assert capsys.readouterr().out.count(text) == 5


def test_closing_words_name_a_model_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, config = tmp_path / "my 'first' $run", Config(data=DataConfig(root="my data"))
    terminal = Terminal(is_main=True)
    terminal.say(closing_line(folder, config))
    assert "the run has left no model" in capsys.readouterr().out
    (folder / "model" / "last").mkdir(parents=True)
    terminal.say(closing_line(folder, config))
    said = capsys.readouterr().out
    assert f"{folder}/model/best is not there" in said
    assert f"--model {shlex.quote(f'{folder}/model/last')} --data.root 'my data' 'your argument'" in said
    (folder / "model" / "best").mkdir()
    config = replace(
        config,
        data=DataConfig(root="my data", columns="point=a b", candidates="counters"),
        model=ModelConfig(trust_remote_code=True),
    )
    terminal.say(closing_line(folder, config))
    said, _, command = capsys.readouterr().out.partition(" Try it: ")
    assert said == f"The best model is in {folder}/model/best."
    arguments = parse(shlex.split(command)[len(typed("search")) :])  # as a shell reads it
    assert (arguments.model, arguments.data_root) == (f"{folder}/model/best", "my data")
    assert (arguments.data_columns, arguments.data_corpus, arguments.data_candidates) == ("point=a b", "", "counters")
    assert (arguments.queries, arguments.trust_remote_code) == (["your argument"], True)


def test_a_run_in_a_folder_that_nobody_chose_says_how_it_is_gone_on_with() -> None:
    folder, chosen = Path("runs/my run"), Config(run=RunConfig(dir="runs/my run"))
    assert run_line(folder, Config(), None).endswith("the same command with --run.dir 'runs/my run' goes on")
    assert run_line(folder, chosen, None) == "run      runs/my run"
    assert run_line(folder, Config(), 7) == "run      runs/my run, going on from step 7"


def test_a_line_of_stdin_that_is_no_utf8_is_named() -> None:
    lines = lines_of(io.BytesIO("\ufeffcaf\u00e9\n".encode() + b"caf\xe9\n"))
    assert next(lines) == "caf\u00e9"
    with pytest.raises(DataError, match=r"line 2 of stdin is no UTF-8 text \(byte 4\)"):
        next(lines)


def entry(work: str, **environment: str) -> "subprocess.Popen[str]":
    # Where the tests themselves run in a shell's background, SIGINT would be ignored.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import os, signal, sys, time\nfrom launcher.entry import run\n{heard}\ndef main(argv):\n    {work}\nrun(main)"
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


def test_colons_and_control_characters_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    terminal, text = Terminal(is_main=True), "a :dog: \x1b[2J\x07 {x}"
    terminal.show(hits_table(text, [Hit(text, 0.5, 0.5)], probabilities=True))
    terminal.say(text)
    assert capsys.readouterr().out.count("a :dog: \ufffd[2J\ufffd {x}") == 3


def test_work_with_brackets_and_braces_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal, screen = Terminal(is_main=True), io.StringIO()
    monkeypatch.setattr(terminal.console, "file", screen)
    monkeypatch.setattr(terminal.console, "_force_terminal", True)
    monkeypatch.setattr(terminal.console, "is_interactive", True)
    at_exit: list[object] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    terminal.start("embedding the {a} [/b] split", 2)
    terminal.advance()
    terminal.note("step 1", step_note({"train/loss": 0.5, "train/grad_norm": 1.0, "train/triplets_per_s": 2.0}))
    assert at_exit == [terminal.end]  # gives the cursor back where an error ends the process
    terminal.end()
    assert "embedding the {a} [/b] split" in screen.getvalue()


def test_long_work_says_in_a_file_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biencoder.tracking.terminal._EVERY_S", 0.01)

    said = []

    def says(line: str) -> bool:
        said.append(capsys.readouterr().out)
        return re.search(line, "".join(said)) is not None

    terminal = Terminal(is_main=True)
    with terminal.work("embedding {a} [/b]", 2000) as advance:
        wait_for(lambda: says(r"embedding \{a\} \[/b\]  \d+ s so far\n"), timeout_s=10)
        for _ in range(3):
            advance(500)
        wait_for(lambda: says(r"embedding \{a\} \[/b\]  1,500 of 2,000, \d+ s left\n"), timeout_s=10)
        terminal.note("step 1", "loss 0.5")
        wait_for(lambda: says(r"step 1  loss 0.5  \d+ s left\n"), timeout_s=10)
    with terminal.work("mining"):
        wait_for(lambda: says(r"mining  \d+ s so far\n"), timeout_s=10)
    capsys.readouterr()
    writing, print_line = threading.Event(), terminal.console.print

    def print_slowly(*args: Any, **kwargs: Any) -> None:
        writing.set()
        time.sleep(0.05)
        print_line(*args, **kwargs)

    monkeypatch.setattr(terminal.console, "print", print_slowly)
    with terminal.work("mining"):
        assert writing.wait(10)
    assert capsys.readouterr().out.startswith("mining")  # a line that was begun stands before what comes next
    with Terminal(is_main=False).work("mining"):
        time.sleep(0.03)
    assert capsys.readouterr().out == ""  # neither of other ranks nor of work that has ended
    assert [duration(seconds) for seconds in (40.4, 99, 100, 3599, 7499)] == [
        "40 s",
        "99 s",
        "2 min",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_tables_keep_their_figures_on_a_narrow_terminal_and_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {f"eval/{split}/{kind}/accuracy@1": 0.417 for split in SPLITS for kind in ("embedding", "rerank")}
    metrics |= {f"{name}_text": 0.5 for name in metrics}
    findings = Findings()
    findings.add("text stands in several splits (kept)", "a/path/that/is/longer/than/forty/columns/are/wide.csv")
    trials = [Trial(Path("one"), "finished", Config(run=RunConfig(seed=seed)), "data", 0.417, 1, None) for seed in (1, 2)]
    tables = [
        *evaluation_table([("zero-shot", metrics)]),
        *findings_table(findings),
        hits_table("Cars should leave.", [Hit("Buses are late.", 0.417, 0.5)], probabilities=True),
        checks_table("Preflight", [CheckResult("network", "warn", "slow")]),
        ranking_table(trials),
    ]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    for width, height_of_first in ((40, 7), (80, 3)):
        monkeypatch.setenv("COLUMNS", str(width))
        terminal, screen = Terminal(is_main=True), io.StringIO()
        monkeypatch.setattr(terminal.console, "file", screen)
        monkeypatch.setattr(terminal.console, "_force_terminal", True)
        terminal.show(tables[1])
        assert len(screen.getvalue().splitlines()) == height_of_first
        terminal.show(*tables[2:])
        shown = screen.getvalue()
        assert "\x1b[3" not in shown.replace("\x1b[3m", "")  # colours; 3 alone is italics
        assert "…" not in shown
        plain = re.sub(r"\x1b\[\d*m", "", shown)
        assert max(map(len, plain.splitlines())) <= width
        assert plain.count("41.7/50.0") == 6
        assert "".join(plain.split()).count("text stands in several splits (kept)".replace(" ", "")) == 1


def test_settings_with_brackets_are_text_in_a_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Trial(Path(f"[b]{rate}"), "finished", Config(model=ModelConfig(name=f"[red]{rate}")), "data", 0.5, 1, None)
        for rate in (1, 2)
    ]
    console = plain_console()
    console.width = 200
    console.print(ranking_table(rows))
    out = capsys.readouterr().out
    assert "[b]1" in out
    assert "[red]2" in out


def test_a_terminal_that_is_gone_ends_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(is_main=True)
    shown = protected(terminal, Channel("the terminal", again=True))
    for error in (BrokenPipeError(), OSError(28, "No space left on device"), UnicodeEncodeError("ascii", "é", 0, 1, "x")):
        monkeypatch.setattr(terminal.console, "print", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        shown.say("one")
        shown.show(*evaluation_table([("zero-shot", {})]))
        shown.show(*Alert("loss", "it rises", "less").lines(1))
    monkeypatch.undo()
    shown.say("two")
    told = capsys.readouterr()
    assert told.out == "two\n"
    assert told.err == "warning: the terminal failed (BrokenPipeError); it is tried again later\n"


@pytest.mark.parametrize("query", ["caf\udce9", "\ud800"])
def test_an_argument_that_is_no_utf8_is_named(query: str) -> None:
    queries = arguments_of(["good", query])
    assert next(queries) == "good"
    with pytest.raises(DataError, match=r"argument 2 is no UTF-8 text: '"):
        next(queries)


def test_a_second_interrupt_ends_what_is_still_waited_for() -> None:
    at_exit = "lambda: (print('ending', flush=True), time.sleep(60))"
    process = entry(f"import atexit; atexit.register({at_exit}); print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


def test_output_that_cannot_be_written_leaves_the_exit_code() -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-c", "import sys\nfrom launcher.entry import run\nrun(lambda _: sys.stdout.write('x'))"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
            cwd=Path(__file__).resolve().parents[2],
            check=False,
        )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(("root", "warned"), [("examples/handbook", True), ("examples/debates", False)])
def test_batches_of_debates_in_data_without_debates_are_said(root: str, *, warned: bool) -> None:
    dataset = load_dataset(root, clean=True)
    why = "but no two training pairs differ in it, so it divides nothing"
    for focus, expected in (
        ("corpus", []),
        ("other_debates", [f"mining.focus is other_debates, {why}; near negatives come from anywhere"]),
    ):
        config = load_config(overrides={"train.batches": "debates", "mining.focus": focus})
        plan: Any = SimpleNamespace(config=config, dataset=dataset)
        said = [f"train.batches is debates, {why}; clusters needs no labels", *expected]
        assert ungrouped(plan) == (said if warned else [])


@pytest.mark.parametrize(
    ("classifier", "weight", "warned"), [("residual", 1, True), ("residual", 0, True), ("linear", 1, False)]
)
def test_a_split_of_more_candidates_than_hubness_is_measured_among_is_said(
    monkeypatch: pytest.MonkeyPatch, classifier: str, weight: int, *, warned: bool
) -> None:
    monkeypatch.setattr("biencoder.training.opening.MOST_TEXTS", 100)
    config = load_config(overrides={"model.classifier": classifier, "loss.classification_weight": str(weight)})
    plan: Any = SimpleNamespace(config=config, dataset=load_dataset("examples/debates", clean=True))
    said = too_many_for_hubness(plan)
    assert [line.split(" candidates")[0] for line in said] == ["the training split has over 100"] * warned
