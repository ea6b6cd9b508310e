"""Make the dashboard of a project in Weights & Biases.

python launcher/dashboard.py --entity ME                  saved as a new view of the project; needs a login
python launcher/dashboard.py --out dashboard.json         its specification as a file; needs neither network nor login
"""

import json
from collections.abc import Sequence
from pathlib import Path

from biencoder import environment
from biencoder.errors import ConfigError
from launcher.entry import Parser, default, run

_TIMEOUT_S = 10


def main(argv: Sequence[str]) -> None:
    parser = Parser(
        prog="dashboard.py",
        description="Make the dashboard of a project in Weights & Biases.",
        example="--out dashboard.json",
    )
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--entity", metavar="NAME", help="user or team that owns the project: save the dashboard there")
    goal.add_argument("--out", type=Path, metavar="FILE", help="write the specification as JSON; nothing is sent")
    project = default("tracking.project")
    parser.add_argument("--project", default=project, metavar="NAME", help=f"the project [default: {project}]")
    arguments = parser.parse_args(argv)
    if arguments.out:
        write(arguments.out)
    else:
        save(arguments.entity, arguments.project)


def write(file: Path) -> None:
    from biencoder.tracking.dashboard import specification

    try:
        file.write_text(json.dumps(specification(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    print(f"The dashboard's specification is in {file}.")


def save(entity: str, project: str) -> None:
    environment.set_default("WANDB_SILENT", "true")
    environment.set_default("WANDB_HTTP_TIMEOUT", str(_TIMEOUT_S))
    import wandb

    from biencoder.tracking.dashboard import workspace

    try:
        if not wandb.login(prompt=False, verify=False):
            raise ConfigError("not logged in to W&B: run `wandb login`, or write the dashboard into a file with --out")
        saved = workspace(entity, project).save()  # type: ignore[no-untyped-call]
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the package passes on what its transport raises, which it does not name
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(
            f"the dashboard could not be saved in {entity}/{project}: {reason}; look at login, names and network"
        ) from None
    print(f"The dashboard is at {saved.url}")


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
