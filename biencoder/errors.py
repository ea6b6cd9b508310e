"""All errors of the program, and the exit codes that the launcher makes of them.

BiencoderError              2     the input is wrong; the message is one sentence that says which part, and what to do
├── ConfigError             2     a key, a value, or values that contradict each other
├── DataError               2     the corpus: a path, a file, an encoding, a split
├── ModelError              2     the model folder, its tokenizer, or its saved weights
├── OutOfMemory             76    a micro-batch does not fit the GPU; the next start takes a smaller one
├── Interrupted             75    a sweep was asked to stop
├── FailedTrialsError       1     a sweep has ended, and some of its trials failed
└── PeerError               1     another rank failed; its message and exit code are carried over
    └── Stopped             75    the run was asked to stop

InternalError               never reaches a user: the program handles it
├── CheckpointError               a checkpoint does not hold what its manifest says
└── Diverged                      too many steps in a row had no finite gradient

Anything else is a fault of the program, of a library or of the machine: a traceback, and exit code 1.
"""

import sys
from contextlib import suppress
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    """The command has done what it was told."""
    FAILED = 1
    """While running: the traceback says where, or the message says which rank."""
    WRONG_INPUT = 2
    """A key, a file, a corpus or a model: one sentence says which, and what to do."""
    STOPPED = 75
    """EX_TEMPFAIL: the same command, started again, goes on. Slurm's RequeueExit is usually set to it."""
    OUT_OF_MEMORY = 76
    """Of a GPU: the same command, started again, goes on with smaller micro-batches."""
    INTERRUPTED = 130
    """By Ctrl-C."""


def tell(sentence: str) -> None:
    """One line on stderr; nothing where that cannot be written, as on a full disk: what is told ends no run."""
    with suppress(Exception):
        print(sentence, file=sys.stderr, flush=True)


class BiencoderError(Exception):
    """Base of every error that the user can do something about; `str(error)` is one readable sentence."""

    kind = "error"
    """The word before its sentence."""
    exit_code: int = ExitCode.WRONG_INPUT


class ConfigError(BiencoderError):
    """A configuration key is unknown, out of range, or contradicts another one."""


class DataError(BiencoderError):
    """The corpus cannot be read, or cannot be trained on."""


class ModelError(BiencoderError):
    """The model cannot be found, loaded or saved."""


class OutOfMemory(BiencoderError):  # noqa: N818 - the run goes on
    """A rank's GPU cannot hold its micro-batch."""

    kind = "stopped"
    exit_code = ExitCode.OUT_OF_MEMORY
    folder: Path | None = None
    """Of the run, once it is known."""


class Interrupted(BiencoderError):  # noqa: N818 - not an error
    """The sweep was asked to stop; the same command goes on."""

    kind = "stopped"
    exit_code = ExitCode.STOPPED


class FailedTrialsError(BiencoderError):
    """The sweep has run to its end, but not all of its trials have."""

    exit_code = ExitCode.FAILED


class PeerError(BiencoderError):
    """Work that all ranks depend on failed on one of them; every rank raises this together."""

    exit_code: int = ExitCode.FAILED

    def __init__(self, message: str, exit_code: int = ExitCode.FAILED) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


class Stopped(PeerError):  # noqa: N818 - not an error
    """The run was asked to stop, and can go on; every rank raises this together."""

    kind = "stopped"
    exit_code = ExitCode.STOPPED

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.STOPPED)


class InternalError(Exception):
    """Base of the errors that the program raises and handles itself."""


class CheckpointError(InternalError):
    """A checkpoint does not hold what its manifest says; the message names the file."""


class Diverged(InternalError):  # noqa: N818 - the run goes back
    """Too many steps in a row had no finite gradient; every rank raises this together."""
