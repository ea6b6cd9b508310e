"""Write what a run has recorded as one HTML file that opens offline, or compare several runs.

python launcher/report.py runs/RUN                       # writes runs/RUN/report.html, as the run itself does
python launcher/report.py runs/ONE runs/TWO --out compared.html
"""

from collections.abc import Sequence
from pathlib import Path

from launcher.entry import Parser, run


def main(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="report.py", description="Write a run's report, or a comparison of several runs.", example="runs/RUN"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write [default: RUN/report.html; comparison.html for several]"
    )
    arguments = parser.parse_args(argv)
    from biencoder.tracking.record import read_record
    from biencoder.tracking.report import write_report

    records = [read_record(folder) for folder in arguments.runs]
    out = arguments.out or (records[0].folder / "report.html" if len(records) == 1 else Path("comparison.html"))
    write_report(records, out)
    print(out)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
