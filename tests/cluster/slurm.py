"""A real Slurm on the nodes of a cluster: munged and slurmctld on the head, one slurmd a node, up in about two seconds.

Times are short, so that faults show in seconds: a node that does not answer is down after 10, a job gets 5 between TERM
and KILL, and a requeued job starts after 6. Each node claims two GPUs, which are files that look like devices. Jobs in the
partition `urgent` requeue jobs in the partition `normal` when they want the same nodes.
"""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.nodes import Cluster, Machine
from tests.launch import ROOT
from tests.needs import need, path_of

_CONFIGURATION = """
ClusterName=test
SlurmctldHost=head({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
MinJobAge=3600
NodeName={nodes} CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=normal Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL DefaultTime=10 MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
"""
_DEVICES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
EVERY_S = 0.5
"""How often Slurm is asked: each time starts a program, which would take cores from what is waited for."""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


@dataclass(frozen=True, slots=True)
class Slurm:
    """Client commands run on the head, in the project's folder."""

    cluster: Cluster
    folder: Path

    @classmethod
    def start(cls, folder: Path, *, nodes: int = 2) -> "Slurm":
        """Start everything and wait until all nodes are idle; skips the test where that is impossible."""
        need("munged", "slurmctld", "slurmd", "sbatch")
        slurm = cls(Cluster.start(folder / "cluster", nodes=nodes), folder)
        try:
            slurm._start_daemons()
        except BaseException:
            slurm.close()
            raise
        return slurm

    def submit(
        self,
        script: str | Path,
        *arguments: str,
        options: Sequence[str] = (),
        env: Mapping[str, str | Path] | None = None,
        folder: Path = ROOT,
    ) -> int:
        """The number of a new job; `env` comes on top of the tests' environment, as in the shell of whoever submits.

        Args:
            folder: where it is submitted.
        """
        output = f"--output={self.folder}/job-%j.out"
        command = ["env", f"--chdir={folder}", "sbatch", "--parsable", output, *options, str(script), *arguments]
        return int(self._client(*command, env=env))

    def job(self, job: int) -> dict[str, str]:
        """What Slurm knows of a job: JobState, ExitCode, Restarts, Reason, ..."""
        return _fields(self._client("scontrol", "show", "job", "--oneliner", str(job)))

    def state(self, job: int) -> str:
        return self.job(job)["JobState"]

    def exit_code(self, job: int) -> int:
        """The batch script's exit code; 128 and the signal's number added where a signal ended it."""
        code, signal = map(int, self.job(job)["ExitCode"].split(":"))
        return code + (128 + signal if signal else 0)

    def output(self, job: int) -> str:
        """What a job and its restarts have printed so far."""
        file = self.folder / f"job-{job}.out"
        return file.read_text(errors="replace") if file.is_file() else ""

    def wait(self, job: int, states: Sequence[str] = _ENDED, *, timeout_s: float = 120) -> str:
        """Until a job is in one of the states; which one."""
        _until(lambda: self.state(job) in states, timeout_s, lambda: f"job {job}: {self.job(job)}\n{self.output(job)}")
        return self.state(job)

    def signal_batch(self, job: int, signal: str) -> None:
        """Signal the batch script alone, as `#SBATCH --signal=B:...` does before the time limit."""
        self._client("scancel", "--batch", f"--signal={signal}", str(job))

    def restarts(self, job: int) -> int:
        """How often a job has gone back into the queue."""
        return int(self.job(job)["Restarts"])

    def cancel(self, job: int) -> None:
        """End a job and wait until it is gone, whatever state it is in."""
        self._client("scancel", str(job))
        self.wait(job)

    def crash(self, node: str) -> None:
        """Power loss on a node; the controller notices after SlurmdTimeout."""
        self.cluster.crash(self.cluster.node(node))

    def boot(self, node: str) -> None:
        """Bring a crashed node back, and wait until it takes jobs."""
        machine = self.cluster.node(node)
        before = self._node(node)["SlurmdStartTime"]
        self.cluster.boot(machine)
        self._start_slurmd(machine)

        def is_back() -> bool:
            facts = self._node(node)
            return facts["SlurmdStartTime"] != before and "DOWN" not in facts["State"]

        _until(is_back, 30, lambda: f"{node} does not come back: {self._node(node)}")

    def close(self) -> None:
        self.cluster.close()

    def _start_daemons(self) -> None:
        names = ",".join(node.name for node in self.cluster.nodes)
        configuration = _CONFIGURATION.format(folder=self.folder, address=self.cluster.head.address, nodes=names)
        (self.folder / "slurm.conf").write_text(configuration.lstrip())
        (self.folder / "gres.conf").write_text(_DEVICES)
        # slurmd loads a cgroup plugin even if nothing asks for it; looking for one by itself fails where none is mounted.
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={_cgroup_plugin()}\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        paths = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in paths.items()]
        self._daemon(self.cluster.head, "munged", "--force", *files)
        self._daemon(self.cluster.head, "slurmctld")
        for node in self.cluster.nodes:
            self._start_slurmd(node)
        wanted = str(len(self.cluster.nodes))
        _until(
            lambda: self._client("sinfo", "--noheader", "--partition=normal", "--states=idle", "--format=%D") == wanted,
            30,
            lambda: "\n".join(f"{log.name}:\n{log.read_text()}" for log in self.folder.glob("*.log")),
        )

    def _start_slurmd(self, node: Machine) -> None:
        self._daemon(node, "slurmd", "-b")  # -b: say that the node has rebooted, so that its old jobs are known to be gone

    def _daemon(self, machine: Machine, program: str, *arguments: str) -> None:
        machine.run(path_of(program) or program, *arguments, env={"SLURM_CONF": self.folder / "slurm.conf"})

    def _node(self, name: str) -> dict[str, str]:
        return _fields(self._client("scontrol", "show", "node", "--oneliner", name))

    def _client(self, *command: str, env: Mapping[str, str | Path] | None = None) -> str:
        return self.cluster.head.run(*command, env={**(env or {}), "SLURM_CONF": self.folder / "slurm.conf"}).strip()


def _cgroup_plugin() -> str:
    """ "disabled" where this Slurm knows the word."""
    version = subprocess.run([path_of("slurmd") or "slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    major, minor = version.split()[1].split(".")[:2]
    return "disabled" if (int(major), int(minor)) >= (23, 11) else "cgroup/v1"


def _fields(line: str) -> dict[str, str]:
    """The `name=value` words of a line of scontrol's."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _until(is_so: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
    limit = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > limit:
            raise TimeoutError(f"not after {timeout_s} s; {complaint()}")
        time.sleep(EVERY_S)
