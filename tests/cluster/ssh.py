"""ssh between the nodes of a cluster, without a password and without a trace outside the cluster's folder."""

import subprocess

from tests.cluster.nodes import Cluster
from tests.needs import need, path_of


def open_ssh(cluster: Cluster) -> None:
    """Start an sshd on every node, and let every node reach every other; skips the test where the programs are missing."""
    need("ssh", "sshd", "ssh-keygen")
    folder = cluster.folder / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("user", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    server = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",  # the folder lies in /tmp, which everybody may write to
        "UsePAM": "no",
        "PidFile": "none",
    }
    client = {
        "IdentityFile": folder / "user",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    for name, settings in (("sshd_config", server), ("ssh_config", client)):
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    for node in cluster.nodes:
        # The machine-wide client file: programs that call ssh by themselves, such as pdsh, read it too.
        node.run("mount", "--bind", folder / "ssh_config", "/etc/ssh/ssh_config")
        node.run("mkdir", "-p", "/run/sshd")
        node.run(path_of("sshd") or "sshd", "-f", folder / "sshd_config", "-E", folder / f"{node.name}.log")
