"""Several machines on one: every node has a network, host name, /etc/hosts, process table and /run of its own, and shares
the disk with the others, as on a cluster.

    head 10.77.0.254 ── bridge ──┬── node1 10.77.0.1
                                 └── node2 10.77.0.2

The head is a set of namespaces that holds the bridge, and the nodes are nested in it. The network of the real machine is
not touched, and no file outside the given folder is written. The death of the head's first process, which follows that of
the tests, takes every process, mount and cable with it.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch import ROOT
from tests.needs import need

NETWORK = "10.77.0"
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
_FIRST_PROCESS = "while :; do sleep 3600; done"  # a shell, since the first process has to reap orphans


@dataclass(frozen=True, slots=True)
class Job:
    """A command under way on a machine; what it prints goes to a file, stdout and stderr together."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {timeout_s} s, having printed:\n{self.output}") from None


@dataclass(slots=True)
class Machine:
    """The head or a node. `init` is its first process, as the real machine counts; None while it is switched off."""

    name: str
    address: str
    folder: Path
    init: int | None = None
    jobs: list[Job] = field(default_factory=list)

    def start(self, command: Sequence[str | Path], *, env: Mapping[str, str | Path] | None = None) -> Job:
        """Start a command in the project's folder, with `env` added to the environment of the tests."""
        log = self.folder / f"{self.name}-{len(self.jobs) + 1}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._entered([*_settings(env), *map(str, command)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.jobs.append(Job(process, log))
        return self.jobs[-1]

    def run(
        self, *command: str | Path, env: Mapping[str, str | Path] | None = None, timeout_s: float = 60, check: bool = True
    ) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            self._entered([*_settings(env), *map(str, command)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def _entered(self, command: Sequence[str]) -> list[str]:
        assert self.init is not None, f"{self.name} is switched off"
        return ["nsenter", f"--target={self.init}", *_NAMESPACES, "--root", "--", "env", f"--chdir={ROOT}", *command]


@dataclass(slots=True)
class Cluster:
    """A head and its nodes, in a folder for their files; `close` is safe to call at any time, and more than once."""

    folder: Path
    head: Machine
    nodes: list[Machine]
    _processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @classmethod
    def start(cls, folder: Path, *, nodes: int = 2) -> "Cluster":
        """Make the machines and their network; skips the test where that is impossible."""
        need("ip", "unshare", "nsenter", "setpriv", "mount", "hostname")
        folder.mkdir(parents=True, exist_ok=True)
        machines = [Machine(f"node{i}", f"{NETWORK}.{i}", folder) for i in range(1, nodes + 1)]
        cluster = cls(folder, Machine("head", f"{NETWORK}.254", folder), machines)
        names = [f"{machine.address} {machine.name}" for machine in (cluster.head, *machines)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        (folder / "resolv.conf").write_text("")  # unknown names fail at once, without asking anybody
        try:
            cluster._start_head()
            for node in machines:
                cluster.boot(node)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def node(self, name: str) -> Machine:
        return next(node for node in self.nodes if node.name == name)

    def boot(self, node: Machine) -> None:
        """Switch a node on and plug its cable in."""
        assert self.head.init is not None
        # Nested in the head's process table, so that it dies with the head.
        enter = ["nsenter", f"--target={self.head.init}", *_NAMESPACES, "--root", "--"]
        node.init = _only_child(_only_child(self._spawn([*enter, *_unshare()])), "sh")
        # The cable is laid from the real machine's process table, in which the node's first process has this number.
        self._cable("add", _port(node), "type", "veth", "peer", "name", "eth0", "netns", str(node.init))
        self._cable("set", _port(node), "master", "br0", "up")
        self._furnish(node)
        node.run("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")

    def unplug(self, node: Machine) -> None:
        """Cut a node's cable: packets vanish, nobody is told."""
        self._cable("set", _port(node), "down")

    def plug(self, node: Machine) -> None:
        self._cable("set", _port(node), "up")

    def crash(self, node: Machine) -> None:
        """Take a node's power away: its cable falls silent and all its processes are gone. `boot` brings it back empty."""
        self.unplug(node)
        self._power_off(node)
        # Dead connections with unsent data would keep the old network, and with it this name, alive for minutes.
        self._cable("delete", _port(node), check=False)

    def close(self) -> None:
        """Kill everything at once and wait until it is gone."""
        self._power_off(self.head)
        jobs = [job.process for machine in (self.head, *self.nodes) for job in machine.jobs]
        for process in (*self._processes, *jobs):
            process.wait()
        for node in self.nodes:
            node.init = None

    def _start_head(self) -> None:
        # The kernel kills `unshare` when the tests die, however they die, and `unshare` its child.
        self.head.init = _only_child(self._spawn(["setpriv", "--pdeathsig", "KILL", *_unshare()]), "sh")
        self._furnish(self.head)
        for arguments in ("link add br0 type bridge", f"address add {self.head.address}/24 dev br0", "link set br0 up"):
            self.head.run("ip", *arguments.split())

    def _furnish(self, machine: Machine) -> None:
        """A name, an address book, and no sight of what runs on the real machine."""
        machine.run("hostname", machine.name)
        for file in ("hosts", "resolv.conf"):
            machine.run("mount", "--bind", self.folder / file, f"/etc/{file}")
        machine.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        machine.run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
        machine.run("ip", "link", "set", "lo", "up")

    def _cable(self, verb: str, *arguments: str, check: bool = True) -> None:
        command = ["nsenter", f"--target={self.head.init}", "--net", "--", "ip", "link", verb, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"ip link {verb} {' '.join(arguments)}: {done.stderr.strip()}")

    def _spawn(self, command: list[str]) -> int:
        with (self.folder / "namespaces.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes.append(process)
        return process.pid

    def _power_off(self, machine: Machine) -> None:
        if machine.init is not None:
            subprocess.run(["kill", "-KILL", str(machine.init)], check=False, stderr=subprocess.DEVNULL)
            machine.init = None


def _unshare() -> list[str]:
    return ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", _FIRST_PROCESS]


def _port(node: Machine) -> str:
    return f"to-{node.name}"


def _settings(env: Mapping[str, str | Path] | None) -> list[str]:
    return [f"{name}={value}" for name, value in (env or {}).items()]


def _only_child(pid: int, name: str = "") -> int:
    """The process that `pid` starts, as soon as it has, and as soon as that one has become the named program."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children and name in Path(f"/proc/{children[0]}/comm").read_text():
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError(f"process {pid} did not start its child; see namespaces.log")
