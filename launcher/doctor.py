"""Before a run: is this machine ready, is the data sound? After it: what went wrong, and what to try.

python launcher/doctor.py --config configs/arguana.toml --data.root DIR      (the arguments of train.py)
python launcher/doctor.py runs/RUN [runs/RUN ...]
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from launcher.entry import parse_run, run

_DESCRIPTION = (
    "Before a run, given the arguments of train.py: look at the machine and the data.\n"
    "After it, given its folder (doctor.py runs/RUN [runs/RUN ...]): say what went wrong, and what to try."
)


def main(argv: Sequence[str]) -> None:
    folders = list(itertools.takewhile(lambda argument: not argument.startswith("-"), argv))
    if folders:
        after([Path(folder) for folder in folders])
    else:
        before(argv)


def before(argv: Sequence[str]) -> None:
    config = parse_run(argv, prog="doctor.py", description=_DESCRIPTION, example="runs/RUN").config
    from biencoder.distributed.join import join
    from biencoder.tracking.terminal import Terminal
    from biencoder.training.opening import checks_table, findings_table
    from biencoder.training.plan import read_data
    from biencoder.training.preflight.checks import preflight, raise_failed
    from biencoder.training.preflight.machine import examine_machine

    with join(config.distributed) as ranks:
        terminal, rows = Terminal(is_main=ranks.is_main), [*preflight(config, ranks), *examine_machine()]
        terminal.show(checks_table("Before a run: nothing was trained", rows))
        ranks.together(lambda: raise_failed(rows))
        terminal.show(*findings_table(read_data(config).findings))


def after(folders: Sequence[Path]) -> None:
    from biencoder.tracking.record import read_record
    from biencoder.tracking.terminal import Terminal
    from biencoder.training.preflight.machine import diagnose

    terminal = Terminal(is_main=True)
    for record in [read_record(folder) for folder in folders]:
        diagnosis = diagnose(record)
        terminal.say(diagnosis.summary)
        for event in diagnosis.events:
            terminal.say(f"  {event}")
        for step, alert in diagnosis.alerts:
            terminal.show(*alert.lines(step))
        if not diagnosis.alerts:
            terminal.say("  No guard sees anything wrong.")


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
