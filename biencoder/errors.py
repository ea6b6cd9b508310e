"""The errors a user can meet; the launcher prints them as one sentence and turns them into an exit code.

BiencoderError            exit code 2: the input is wrong, and the message says which part and what to do
├── ConfigError           a key, a value, or values that contradict each other
├── DataError             the corpus: a path, a file, an encoding, a split
├── ModelError            the model folder, its tokenizer, or its saved weights
├── OutOfMemory           a micro-batch does not fit the GPU (exit code 76, see out_of_memory.py)
└── PeerError             some rank failed; its message and exit code are carried over
"""

import sys
from contextlib import suppress


def tell(sentence: str) -> None:
    """One line on stderr; nothing where that cannot be written, as on a full disk: what is told ends no run."""
    with suppress(Exception):
        print(sentence, file=sys.stderr, flush=True)


class BiencoderError(Exception):
    """Base of every error that is the user's to mend; `str(error)` is one readable sentence."""

    kind = "error"
    """The word before its sentence."""
    exit_code = 2


class ConfigError(BiencoderError):
    """A configuration key is unknown, out of range, or contradicts another one."""


class DataError(BiencoderError):
    """The corpus cannot be read, or cannot be trained on."""


class ModelError(BiencoderError):
    """The model cannot be found, loaded or saved."""


class PeerError(BiencoderError):
    """Work that all ranks depend on failed on one of them; every rank raises this together."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])
