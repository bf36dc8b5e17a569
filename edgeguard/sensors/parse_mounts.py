"""/proc/PID/mountinfo taken apart, and which mounts come and go by themselves. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

MOUNTS_MAX = 4096  # a container host with hundreds of containers has some thousand
MOUNTINFO_MAX = 4 * 1024 * 1024  # bytes; an overlay line with many layers has 4 KiB

_OCTAL = re.compile(rb"\\([0-7]{3})")
_TOLD = (b"ro", b"nosuid", b"nodev", b"noexec")
_PSEUDO = frozenset(
    (
        "proc",
        "sysfs",
        "devtmpfs",
        "devpts",
        "cgroup",
        "cgroup2",
        "securityfs",
        "debugfs",
        "tracefs",
        "configfs",
        "fusectl",
        "mqueue",
        "hugetlbfs",
        "pstore",
        "efivarfs",
        "bpf",
        "binfmt_misc",
        "rpc_pipefs",
        "nfsd",
        "selinuxfs",
        "binder",
    )
)
_NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "glusterfs", "fuse.sshfs", "davfs")
)
# Made and removed by systemd, udisks and container engines while nobody changes the machine.
_TRANSIENT = re.compile(
    r"/run/(user|credentials|systemd|netns|docker|containerd|containers|snapd|lock/snapd)(/.*)?"
    r"|/var/lib/(docker|containers|containerd|kubelet|lxc|lxd|machines|portables)/.*"
    r"|/proc/.*|/sys/.*"
)


class Mount(NamedTuple):
    point: str
    root: str  # which part of the file system is mounted here; "/" is all of it
    fstype: str
    source: str
    options: tuple[str, ...]  # the security-relevant ones
    category: str


def parse(data: bytes) -> Iterator[Mount]:
    """Every mount, in the kernel's order: of two on one point the later one is on top."""
    for line in data.split(b"\n", MOUNTS_MAX)[:MOUNTS_MAX]:
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        left, _, right = line.partition(b" - ")
        before, after = left.split(b" "), right.split(b" ")
        if len(before) < 6 or len(after) < 3:
            continue  # the empty last line
        root, point = _plain(before[3]), _plain(before[4])
        fstype, source = _plain(after[0]), _plain(after[1])
        flags = set(before[5].split(b",")) | (set(after[2].split(b",")) & {b"ro"})
        # The default interface of namespaces and the automounter's placeholder are no file systems of anybody.
        if fstype in ("nsfs", "autofs"):
            continue
        options = [flag.decode() for flag in _TOLD if flag in flags]
        if _is_bind(fstype, root):
            options.append("bind")
        yield Mount(point, root, fstype, source, tuple(options), _category(point, fstype))


def _is_bind(fstype: str, root: str) -> bool:
    """Only a part is mounted. Subvolumes of btrfs look the same and are ordinary."""
    return root != "/" and fstype != "btrfs"


def _category(point: str, fstype: str) -> str:
    if _TRANSIENT.fullmatch(point):
        return "transient"
    if fstype in _PSEUDO:
        return "pseudo"
    if fstype in _NETWORK:
        return "network"
    return "memory" if fstype in ("tmpfs", "ramfs") else "disk"


def _plain(field: bytes) -> str:
    """The kernel writes space, tab, newline and backslash as octal."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), field))
