"""Which mounts come and go by themselves, and which options matter. Pure."""

from __future__ import annotations

import re

from edgeguard.linux.mounts import Mount

_TOLD = ("ro", "nosuid", "nodev", "noexec")
_PSEUDO = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "configfs"),
        *("fusectl", "mqueue", "hugetlbfs", "pstore", "efivarfs", "bpf", "binfmt_misc", "rpc_pipefs", "nfsd", "binder"),
    )
)
_NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "glusterfs", "fuse.sshfs", "davfs")
)
# The handle of a namespace and the automounter's placeholder are no file systems of anybody.
_NONE = ("nsfs", "autofs")
# Made and removed by systemd, udisks and container engines while nobody changes the machine.
_TRANSIENT = re.compile(
    r"/run/(user|credentials|systemd|netns|docker|containerd|containers|snapd|lock/snapd)(/.*)?"
    r"|/var/lib/(docker|containers|containerd|kubelet|lxc|lxd|machines|portables)/.*"
    r"|/proc/.*|/sys/.*",
    re.DOTALL,
)


def category(mount: Mount) -> str:
    """disk, memory, network, pseudo, transient; "" for what is no file system of anybody."""
    if mount.fstype in _NONE:
        return ""
    if _TRANSIENT.fullmatch(mount.point):
        return "transient"
    if mount.fstype in _PSEUDO:
        return "pseudo"
    if mount.fstype in _NETWORK:
        return "network"
    return "memory" if mount.fstype in ("tmpfs", "ramfs") else "disk"


def options(mount: Mount) -> tuple[str, ...]:
    """Those that matter; read-only by the file system counts like read-only by the mount."""
    found = [name for name in _TOLD if name in mount.options or (name == "ro" and name in mount.super_options)]
    # Only a part is mounted. Subvolumes of btrfs look the same and are ordinary.
    if mount.root != "/" and mount.fstype != "btrfs":
        found.append("bind")
    return tuple(found)
