"""The report in a real browser: it draws everything, asks the network for nothing, and fits a laptop and a phone."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run, small_run, train
from tests.conftest import WriteCorpus, numbered_corpus
from tests.needs import need_programs, path_of
from tests.records import ALERT, EVIL, write_run

pytestmark = pytest.mark.e2e
REPORT = [sys.executable, "launcher/report.py"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need_programs("chromium", "chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(path_of("chromium"))
    quiet = "no-first-run disable-background-networking disable-component-update disable-sync"
    for argument in f"headless=new no-sandbox disable-gpu {quiet}".split():
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(path_of("chromedriver"))))
    yield driver
    driver.quit()


def visit(browser: Any, page: Path, width: int) -> dict[str, Any]:
    """Open a page at a width in pixels; what it drew."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    found: dict[str, Any] = browser.execute_script("""
        document.querySelectorAll("details").forEach((part) => { part.open = true; });
        const plots = [...document.querySelectorAll(".plot")];
        return {
          title: document.title,
          hidden: document.documentElement.scrollWidth - document.documentElement.clientWidth,
          plots: plots.length,
          drawn: plots.filter((plot) => {
            const box = plot.querySelector(".main-svg")?.getBoundingClientRect();
            const traces = plot.querySelectorAll(".scatterlayer .trace path.js-line, .barlayer .point path");
            return box && box.width > 250 && box.height > 100 && traces.length;
          }).length,
          text: document.body.innerText,
        };
    """)
    return found


@pytest.mark.parametrize("runs", [1, 2])
def test_a_page_is_drawn_whole(browser: Any, tmp_path: Path, runs: int) -> None:
    folders = [tmp_path / f"run-{i}" for i in range(runs)]
    for folder in folders:
        write_run(folder, lines=(ALERT,))
    done = run([*REPORT, *map(str, folders), "--out", str(tmp_path / "page.html")], fork=runs != 1)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'page.html'}\n"), done.stderr
    for width in (1366, 390):
        found = visit(browser, tmp_path / "page.html", width)
        assert found["plots"] == found["drawn"] > 10, width
        assert found["hidden"] == 0, width  # nothing to scroll sideways for
        assert found["title"].startswith("run-0" if runs == 1 else "2 runs")
        assert EVIL in found["text"]
    assert browser.get_log("browser") == []
    requests = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert requests
    assert not [request for request in requests if '"url":"file:' not in request and '"url":"data:' not in request]


def test_a_run_leaves_its_report(tiny_bert: Path, write_corpus: WriteCorpus, browser: Any, tmp_path: Path) -> None:
    corpus, run_dir = write_corpus(numbered_corpus(training=16)), tmp_path / "run"
    done = train(*small_run(tiny_bert, corpus, run_dir, tracking__report="true"))
    assert done.returncode == 0, done.stderr
    found = visit(browser, run_dir / "report.html", 1366)
    assert found["plots"] == found["drawn"] > 10
    assert "finished" in found["text"]
    assert "step 4, epoch 2" in found["text"]


def test_what_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    done = run([*REPORT, str(tmp_path)])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "is no run's folder: it holds no config.toml" in done.stderr
