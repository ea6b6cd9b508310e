"""Real processes at a hundredth of their price: a server that has imported everything once, and forks what it is asked for.

A new interpreter spends 4 to 6 s on importing torch, transformers and DeepSpeed. This process pays for that once; a child
that it forks begins where a new interpreter would stand after its imports. Everything else is the child's own: session and
process group, environment, folder, arguments, stdin, stdout, stderr, exit code, signals, gloo connections. What it shares
with its siblings, and a new interpreter does not: the seed of `hash(str)`, and what libraries read from the environment
while they are imported (`tests/processes.py` starts a new interpreter where that matters).

A process must have one thread when it forks: locks that other threads hold would stay locked in the child for ever.

    python -m tests.fork_server SOCKET      a path, to which `tests.processes` connects: several test processes may

It ends once its last client is gone, and what a client has started ends with that client.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What training runs and the other commands have imported at their end, as far as it is slow. Not wandb: it makes a folder
# while it is imported, which the first child to end would remove.
MODULES = (
    "launcher.train",
    "launcher.evaluate",
    "biencoder.training.loop",
    "biencoder.retrieval.faiss_index",
    "biencoder.training.model_card",
    "biencoder.data.token_cache",
    "biencoder.training.preflight.checks",
    "biencoder.evaluation.systems",
    "biencoder.data.near_duplicates",
    "biencoder.tracking.report.page",
    "transformers.models.bert.modeling_bert",
    "sklearn.neighbors",
    "faiss",
    "pandas",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imports torch._dynamo
)
MAX_REQUEST = 1 << 20
_PATIENCE_S = 30.0
"""What torchrun, too, gives the other ranks between SIGTERM and SIGKILL once one of them has failed."""


@dataclass(frozen=True)
class Request:
    arguments: list[str]
    """What follows `python`: a script or `-c CODE`, and its arguments."""
    environment: dict[str, str]
    folder: str
    ranks: int
    """So many processes with the environment that torchrun would give them, under one that watches them; 0: one process."""
    port: int
    """Where the ranks meet."""
    files: list[int] = field(default_factory=list)
    """stdin, stdout, stderr, and a socket on which the process tells its number and its ranks, and the server its end."""


def main() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen()
    for name in MODULES:
        importlib.import_module(name)
    from transformers import conversion_mapping

    from biencoder.training.engine.settings import import_deepspeed

    import_deepspeed()
    conversion_mapping.get_checkpoint_conversion_mapping("bert")  # 1,000 regular expressions, which transformers keeps
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    if len(threads) > 1:
        raise RuntimeError(f"a process of several threads must not fork: {threads}")
    gc.collect()
    gc.freeze()  # the children's collections do not touch, and so do not copy, what all share
    become(serve(listener))


@dataclass(frozen=True)
class Child:
    pid: int
    teller: socket.socket
    client: int
    """The descriptor of the connection that asked for it."""


def serve(listener: socket.socket) -> Request:
    """Fork until all clients are gone. Returns in each child, with what it has to do."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}
    children: dict[int, Child] = {}  # by the descriptor that shows the child's end
    while True:
        for key, _ in selector.select():
            if key.fd in children:
                selector.unregister(key.fd)
                os.close(key.fd)
                child = children.pop(key.fd)
                tell(child.teller, status=os.waitpid(child.pid, 0)[1])
                child.teller.close()
            elif key.fd == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                selector.register(client, selectors.EVENT_READ)
                client.send(b"ready")
            elif request := receive(clients[key.fd]):
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    for descriptor, child in children.items():
                        os.close(descriptor)
                        child.teller.close()
                    for connection in (listener, *clients.values()):
                        connection.close()
                    return as_child(request)
                *others, told = request.files
                for file in others:
                    os.close(file)
                descriptor = os.pidfd_open(pid)
                children[descriptor] = Child(pid, socket.socket(fileno=told), key.fd)
                selector.register(descriptor, selectors.EVENT_READ)
            else:
                selector.unregister(key.fd)
                kill([child.pid for child in children.values() if child.client == key.fd])
                clients.pop(key.fd).close()
                if not clients:
                    os._exit(0)


def receive(control: socket.socket) -> Request | None:
    files = array.array("i")
    try:
        message, ancillary, *_ = control.recvmsg(MAX_REQUEST, socket.CMSG_SPACE(4 * files.itemsize))
    except ConnectionResetError:  # it has left without reading that the server is ready
        return None
    for _, _, content in ancillary:
        files.frombytes(content)
    return Request(**json.loads(message), files=list(files)) if message else None


def tell(teller: socket.socket, **what: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        teller.send(json.dumps(what).encode())


def kill(pids: list[int]) -> None:
    """Kill these process groups."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def as_child(request: Request) -> Request:
    """Make this process what the request wants it to be, up to what it runs; with ranks, returns in each of them."""
    os.setsid()
    *files, told = request.files
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    # As a new interpreter would open them; those of the server are of another kind of file, and remember it.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    with socket.socket(fileno=told) as teller:
        pids = {} if not request.ranks else fork_ranks(request)
        if pids is not None:
            tell(teller, pid=os.getpid(), ranks={rank: pid for pid, rank in pids.items()})
    if pids:
        os._exit(watch(pids))
    return request


def fork_ranks(request: Request) -> dict[int, int] | None:
    """The rank of each new process, by its number; None in these processes."""
    pids = {}
    for rank in range(request.ranks):
        pid = os.fork()
        if pid == 0:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request.ranks, "MASTER_PORT": request.port}
            os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
            return None
        pids[pid] = rank
    return pids


def watch(pids: dict[int, int]) -> int:
    """Wait for all ranks, as torchrun does: where one fails, the others are told to end, and killed after a while.

    Returns the exit code of the first that failed (torchrun would make it a 1), 128 more than a signal's number, or 0.
    """
    alive = set(pids)

    def pass_on(number: int, _: object = None) -> None:
        for pid in alive:
            os.kill(pid, number)  # it is not reaped yet, so the number is still its own

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code, limit = 0, float("inf")
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if time.monotonic() > limit:
                pass_on(signal.SIGKILL)
            time.sleep(0.02)
            continue
        alive.remove(pid)
        failed = os.waitstatus_to_exitcode(status)
        if failed and not code:
            code, limit = failed, time.monotonic() + _PATIENCE_S
            time.sleep(0.1)
            pass_on(signal.SIGTERM)
    return code if code >= 0 else 128 - code


def become(request: Request) -> None:
    """Run what `python ARGUMENTS` would run."""
    take_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    first, *rest = request.arguments
    sys.orig_argv = [sys.executable, *request.arguments]
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def take_threads(count: int) -> None:
    """Give OpenMP the number that it would have read from the process's own environment."""
    import faiss
    import torch

    if count != torch.get_num_threads():
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)


if __name__ == "__main__":
    main()
