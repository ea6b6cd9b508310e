"""report.html: what a run has recorded, as one file that opens offline, or several runs side by side.

    write_report([read_record(Path("runs/mine"))], Path("runs/mine/report.html"))

page            puts the page together
figures         which plots there are, and what they draw
summary         what the page tells in words and tables
series          numbers made ready for drawing
page.html.j2, page.css, page.js    what the browser gets; plotly.js comes with the plotly package
"""

from biencoder.tracking.report.page import write_report

__all__ = ["write_report"]
