"""What these tests need of the machine; a test that cannot run is skipped with a reason that names what is missing.

With BIENCODER_TEST_INSTALL=1 in the environment, missing programs are installed from Debian's or Ubuntu's packages.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache

import pytest

_PACKAGES = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "hostname": "hostname",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "pdsh": "pdsh",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}
_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def need(*programs: str) -> None:
    """Skip the test unless this machine may make nodes and has these programs."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    need_programs(*programs)
    refusal = _refusal_of_namespaces()
    if refusal:
        pytest.skip(f"needs the right to make namespaces and a bridge; this machine says: {refusal}")


def need_programs(*programs: str) -> None:
    """Skip the test unless this machine has these programs, or may install them."""
    missing = [program for program in programs if not path_of(program)]
    if missing and os.environ.get("BIENCODER_TEST_INSTALL") == "1" and shutil.which("apt-get"):
        _install({_PACKAGES[program] for program in missing})
        missing = [program for program in programs if not path_of(program)]
    if missing:
        names = ", ".join(f"{program} (package {_PACKAGES[program]})" for program in missing)
        pytest.skip(f"needs {names}; BIENCODER_TEST_INSTALL=1 installs them")


def path_of(program: str) -> str | None:
    """Where a program is, also one of those that only root has on its path."""
    return shutil.which(program, path=_SYSTEM_PATH)


def _install(packages: Iterable[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *sorted(packages)]):
        # What could not be installed is missing still, and the test is skipped with its name.
        subprocess.run(["apt-get", "-qq", *command], env=environment, stdin=subprocess.DEVNULL, check=False)


@cache
def _refusal_of_namespaces() -> str:
    """The error of a trial: namespaces of all kinds used here, a bridge, and one end of a cable; empty where it works."""
    trial = "mount -t tmpfs tmpfs /run && ip link add br0 type bridge && ip link add veth0 type veth peer name veth1"
    kinds = ["--pid", "--mount", "--net", "--uts", "--ipc"]
    done = subprocess.run(
        ["unshare", *kinds, "--fork", "--mount-proc", "sh", "-c", trial], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
