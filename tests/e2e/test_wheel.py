"""The package as others install it: a wheel, in an environment of its own, used in an empty folder."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import biencoder
from biencoder.config.paths import PROJECT_ROOT

pytestmark = pytest.mark.e2e
SOURCES = (
    "biencoder",
    "launcher",
    "configs",
    "ds_configs",
    "examples",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)


def output(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that holds the wheel, and finds its dependencies in the environment of the tests."""
    tree = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = PROJECT_ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    output(*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=tree)
    (wheel,) = (tree / "dist").glob("*.whl")
    environment = tree / "environment"
    output(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tree)
    python = environment / "bin" / "python"
    output(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=tree)
    # Last on the path: a package of the same name there is not found before the wheel's.
    others = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    site = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tree).strip()
    (Path(site) / "zz-others.pth").write_text("".join(f"{path}\n" for path in others))
    for name in SOURCES:  # nothing is read from where it was built
        shutil.rmtree(tree / name, ignore_errors=True)
    return environment


def test_what_is_installed_trains_and_is_used_in_an_empty_folder(installed: Path, tiny_bert: Path, tmp_path: Path) -> None:
    code = "import biencoder as b, biencoder.config.paths as p; print(b.__version__, b.__file__, p.SHIPPED, sep='\\n')"
    version, file, shipped = output(installed / "bin/python", "-c", code, cwd=tmp_path).splitlines()
    assert version == biencoder.__version__
    assert Path(file).is_relative_to(installed)
    assert (Path(file).parent / "py.typed").is_file()
    for folder in ("configs", "ds_configs", "examples"):
        assert files(Path(shipped), folder) == files(PROJECT_ROOT, folder)

    train: list[str | Path] = [
        installed / "bin/biencoder-train",
        "--config",
        "configs/quickstart.toml",
        "--train.max_steps",
        "2",
    ]
    small: list[str | Path] = ["--model.name", tiny_bert, "--model.max_length", "32", "--run.dir", "run"]
    *_, last = output(*train, *small, cwd=tmp_path).splitlines()
    assert "Try it: biencoder-search --model run/model/best " in last
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    start, end = map(json.loads, (tmp_path / "run/run.jsonl").read_text().splitlines())
    assert (start["commit"], end["step"]) == (None, 2)  # no checkout, wherever it is installed

    search = shlex.split(last.partition("Try it: ")[2])
    assert "your argument" in output(installed / "bin" / search[0], *search[1:], cwd=tmp_path)


def files(root: Path, folder: str) -> set[Path]:
    paths = (path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file())
    return {path for path in paths if "__pycache__" not in path.parts}
