"""Training from another program, and the example that uses all public names."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import records, run, small_run
from tests.conftest import WriteCorpus, numbered_corpus
from tests.processes import ROOT

pytestmark = pytest.mark.e2e
PROGRAM = """
import os, signal, sys, threading
from pathlib import Path
from biencoder import DataError, load_config, train

def settings(run_dir, *more):
    names = [*sys.argv[1:], "--run.dir", run_dir, *more]
    return load_config(overrides=dict(zip([name[2:] for name in names[::2]], names[1::2])))

def signals():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)], signal.set_wakeup_fd(-1)

before = signals()
assert train(settings("first")) == Path("first")
assert train(settings("first")) == Path("first")  # it is finished
assert train(settings("second", "--train.max_steps", "1")) == Path("second")
for root, folder in (("nowhere", "third"), ("nowhere", "first")):
    try:
        train(settings(folder, "--data.root", root))
    except DataError as error:
        print(error)
assert signals() == before
assert "RANK" not in os.environ and "MASTER_ADDR" not in os.environ  # another trainer would take them for a launcher's
assert not [thread.name for thread in threading.enumerate() if thread.name == "signals"]
"""


def test_a_program_trains_several_runs_and_the_example_uses_the_model(
    tiny_bert: Path, write_corpus: WriteCorpus, tmp_path: Path
) -> None:
    settings = small_run(tiny_bert, write_corpus(numbered_corpus(training=16)), tmp_path / "none", train__epochs=1)
    done = in_folder(tmp_path, PROGRAM, *settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("data.root nowhere does not exist") == 2
    assert [record["step"] for name in ("first", "second") for record in records(tmp_path / name, "step")] == [1, 2, 1]

    example = f"import runpy; runpy.run_path({str(ROOT / 'examples/use_as_library.py')!r}, run_name='__main__')"
    done = in_folder(tmp_path, example, str(tmp_path / "first/model/best"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 texts became vectors of 16 dimensions." in done.stdout
    assert done.stdout.count("At distance ") == 3
    assert "Hard to tell from " in done.stdout
    done = in_folder(tmp_path, example, str(tmp_path / "nothing"))
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:6]) == (1, 1, "error:")
    assert not (tmp_path / "third").exists()


def in_folder(folder: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run([sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{code}", *arguments])
