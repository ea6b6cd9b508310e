"""Start commands as real processes: forked from a server that has its imports behind it, or as new interpreters.

A command of this project's Python is forked unless that would change what it does; any other command, and one with
`fork=False`, is started as a user starts it. See `tests/fork_server.py`.
"""

import array
import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = "TESTS_FORK_SERVER"
"""Names the socket of a server that the workers of one run of pytest share."""
READ_BY_IMPORTS = ("PYTHON", "LC_", "LANG", "LD_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "DS_", "CUDA_")
"""How the names of variables begin that an interpreter or a library reads once, while it starts."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str], *, environment: Mapping[str, str], stdin: str = "", fork: bool = True, ranks: int = 0
) -> "Forked | subprocess.Popen[str]":
    """A command under way in the project's folder, in a session of its own, with pipes for what it prints.

    With `ranks`, it runs in so many processes, with the environment that torchrun would give them; they are always forked.
    """
    if ranks or (fork and _can_be_forked(command, environment)):
        return Forked(command, environment=environment, stdin=stdin, ranks=ranks)
    with _as_file(stdin) as given:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def _can_be_forked(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    if command[0] != sys.executable or not (command[1] == "-c" or command[1].endswith(".py")):
        return False
    there = server().environment
    return all(
        environment.get(name) == there.get(name) for name in {*environment, *there} if name.startswith(READ_BY_IMPORTS)
    )


def _as_file(text: str) -> IO[str]:
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the caller closes it
    file.write(text)
    file.seek(0)
    return file


class Server:
    """The client's side of a fork server: of the one at SHARED, if it is there, else of one of its own."""

    def __init__(self, *, shared: bool = False) -> None:
        """Args: shared: start the one at SHARED."""
        self._lock = threading.Lock()
        without_threads = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        self.environment = {**os.environ, **without_threads}
        self._process: subprocess.Popen[bytes] | None = None
        place = Path(os.environ.get(SHARED, ""))
        if shared:
            self._control = self._started(place)
        elif place.is_socket():
            self._control = _connected(place)
        else:
            self._control = self._started(Path(tempfile.mkdtemp()) / "server")
        atexit.register(self.close)

    def _started(self, place: Path) -> socket.socket:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(place)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at a terminal is for the tests
        )
        self._place = place
        while self._process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # it does not listen yet
                return _connected(place)
            time.sleep(0.02)
        raise RuntimeError(f"the fork server ended with {self._process.returncode}; its stderr says why")

    def wait(self) -> None:
        """Until it has its imports behind it."""
        if self._control.recv(16) != b"ready":
            raise RuntimeError("the fork server has ended; its stderr says why")

    def request(self, files: Sequence[int], **what: object) -> None:
        """Have a process forked that gets these files, see `fork_server.Request`."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        with self._lock:
            self._control.sendmsg([json.dumps(what).encode()], [rights])

    def close(self) -> None:
        """End everything that the server has started for this process, and the server, if no other uses it."""
        self._control.close()
        if self._process:
            self._process.wait()
            shutil.rmtree(self._place.parent, ignore_errors=True)


def _connected(place: Path) -> socket.socket:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(str(place))
    except OSError:
        control.close()
        raise
    return control


@cache
def server() -> Server:
    """The server of these tests, started when it is first needed."""
    found = Server()
    found.wait()
    return found


class Forked:
    """A process forked by the server, with the part of `subprocess.Popen`'s interface that tests use."""

    pid: int
    ranks: dict[int, int]
    """Process id of each rank, where the process is one that watches ranks."""
    returncode: int | None

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], stdin: str, ranks: int) -> None:
        self.args, self.returncode = list(command), None
        self._told, teller = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, write_out), (err, write_err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        with _as_file(stdin) as given, teller, os.fdopen(write_out, "w"), os.fdopen(write_err, "w"):
            server().request(
                [given.fileno(), write_out, write_err, teller.fileno()],
                arguments=self.args[1:],
                environment=dict(environment),
                folder=str(ROOT),
                ranks=ranks,
                port=free_port() if ranks else 0,
            )
        told = self._hear(None)
        self.pid, self.ranks = told["pid"], {int(rank): pid for rank, pid in told["ranks"].items()}
        self._texts: dict[str, str] = {}
        self._readers: list[threading.Thread] = []

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(self._hear(timeout)["status"])
            self._told.close()
        return self.returncode

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed, once it has ended; may be called again after `subprocess.TimeoutExpired`."""
        limit = None if timeout is None else time.monotonic() + timeout
        if not self._readers:
            streams = {"stdout": self.stdout, "stderr": self.stderr}
            self._readers = [threading.Thread(target=self._read, args=item, daemon=True) for item in streams.items()]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(limit and max(0.0, limit - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(limit and max(0.0, limit - time.monotonic()))
        return self._texts["stdout"], self._texts["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            self._texts[name] = stream.read()

    def _hear(self, timeout: float | None) -> dict[str, Any]:
        self._told.settimeout(timeout)
        try:
            message = self._told.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
        if not message:
            raise RuntimeError("the fork server is gone")
        told: dict[str, Any] = json.loads(message)
        return told
