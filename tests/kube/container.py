"""A container without a container runtime: a process of this machine in namespaces of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.kube.control_plane import run_bound

# What the process sees is this machine's root file system; what it writes to that is in memory, and gone with it. The
# pod's volumes are bound over that, so that they are found where the manifest mounts them and nothing is made outside.
SETUP = """
set -e
root=$1 host=$2 address=$3 count=$4
shift 4
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/merged"
mount -t overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" overlay "$root/merged"
cd "$root/merged"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
while [ "$count" -gt 0 ]; do
    # found inside: an absolute link on the way, as /var/run is, would lead outside
    if [ -d "$1" ]; then chroot . mkdir -p "$2"; else chroot . sh -c 'mkdir -p "$(dirname "$0")"; touch "$0"' "$2"; fi
    target=.$(chroot . readlink -e "$2")
    mount --bind "$1" "$target"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$target"; fi
    shift 3
    count=$((count - 1))
done
echo "$address $host" >> etc/hosts
hostname "$host"
echo up >&3
exec 3>&-
exec chroot . /usr/bin/env -i "$@"
"""
TRIAL = "lowerdir=/,upperdir=u,workdir=w"
ISOLATED = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--propagation=private")


class StartError(Exception):
    """The process could not be started; its log may tell more."""


@dataclass(frozen=True)
class Mount:
    """What is found at ``target`` in the container."""

    source: Path
    target: str
    read_only: bool = False


class Container:
    """A process that runs, or has run. It is the first of its pid namespace: when it ends, all that it started ends.

    As in a real container, a first process that does not handle SIGTERM is not ended by it. It ends at the latest with
    the thread that starts it.

    Args:
        command: The program and its arguments.
        environment: All of it.
        host: Its host name.
        address: What its /etc/hosts has for that name.
        mounts: In the order in which they are made.
        directory: Where it runs.
        root: An empty directory of its own.
        log: Its output is added to this file.

    Raises:
        StartError: Its namespaces or mounts could not be made.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        host: str,
        address: str,
        mounts: Sequence[Mount],
        directory: str,
        root: Path,
        log: Path,
    ) -> None:
        binds = [
            word for mount in mounts for word in (str(mount.source), mount.target, "ro" if mount.read_only else "rw")
        ]
        variables = [f"{name}={value}" for name, value in environment.items()]
        read_end, write_end = os.pipe()
        try:
            with log.open("ab") as output:
                self._unshare = run_bound(
                    [
                        *ISOLATED,
                        *("bash", "-c", f"exec 3>&{write_end} {write_end}>&-{SETUP}", "bash"),
                        *(str(root), host, address, str(len(mounts)), *binds),
                        *(f"--chdir={directory}", *variables, *command),
                    ],
                    output.fileno(),
                    pass_fds=(write_end,),
                )
        finally:
            os.close(write_end)
            with os.fdopen(read_end) as told:
                # The other end is closed when the set-up is done or has failed; unshare itself holds it until its end.
                up = told.readline() == "up\n"
        if not up:
            self._unshare.wait()
            raise StartError(f"its set-up failed: {log.read_text(errors='replace')[-500:]}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else 0
        """The process as this machine knows it; 0 if it has ended already."""

    def wait(self) -> int:
        """Wait for its end. Its exit code, which is 128 and more for a signal."""
        code = self._unshare.wait()
        return 128 - code if code < 0 else code

    def run(self, command: Sequence[str], timeout_s: float) -> None:
        """Run something beside it, in its namespaces; what becomes of that does not matter, as of a preStop hook."""
        inside = ("nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--pid", "--root", "--wd")
        if self.pid:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([*inside, *command], capture_output=True, check=False, timeout=timeout_s)

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # unshare is the parent that reaps it, so its pid is not another's while unshare runs
        if self.pid and self._unshare.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@cache
def why_not() -> str:
    """Why containers cannot be made here; empty where they can."""
    try:
        tried = subprocess.run(
            [
                *ISOLATED,
                *(
                    "sh",
                    "-ec",
                    f"mount -t tmpfs tmpfs /mnt; cd /mnt; mkdir u w m; mount -t overlay -o {TRIAL} overlay m",
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "no unshare command (util-linux)"
    return tried.stderr.strip()
