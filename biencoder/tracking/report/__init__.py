"""report.html: the record of one run, or several runs side by side, as one file that opens offline.

    write_report([read_record(Path("runs/mine"))], Path("runs/mine/report.html"))

page            puts the page together
figures         which plots there are, and what they draw
summary         what the page tells in words and tables
series          numbers made ready for drawing
page.html.j2, page.css, page.js    sources of the page; plotly.js comes with the plotly package

Imports config, errors and the modules of tracking. Hands out `write_report`.
"""

from biencoder.tracking.report.page import write_report

__all__ = ["write_report"]
