"""What a directory lies on: whether it lasts, and how much its block device was made to write."""

from __future__ import annotations

import os
from typing import NamedTuple

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts
from edgeguard.linux.mounts import Mount

SECTOR = 512  # bytes; of the kernel's counters, whatever the device has
_MEMORY = ("tmpfs", "ramfs")
_SECTORS_WRITTEN = 6  # column of Documentation/block/stat.rst


class Medium(NamedTuple):
    """`kind`: disk (outlives a power cut), memory, overlay (nobody can tell from here), unknown."""

    kind: str
    fstype: str
    device: tuple[int, int] | None  # major and minor of the block device; None: there is none, or it is not seen


def medium(path: str, proc: str = "/proc") -> Medium:
    """What `path` lies on. Never raises: what cannot be told is `unknown`."""
    try:
        table = mounts.read(proc)
        mount = mounts.covering(table, os.path.realpath(path))
        if mount is None:
            return Medium("unknown", "", None)
        if mount.fstype == "overlay":
            return _overlay(table, mount)
        if mount.fstype in _MEMORY:
            return Medium("memory", mount.fstype, None)
        return Medium("disk", mount.fstype, _device(mount))
    except (OSError, DecodeError):
        return Medium("unknown", "", None)


def _overlay(table: list[Mount], mount: Mount) -> Medium:
    """What is written goes to the upper directory. An initramfs may have mounted that where we cannot see it."""
    upper = next((one.removeprefix("upperdir=") for one in mount.super_options if one.startswith("upperdir=")), "")
    below = mounts.covering(table, upper) if upper and os.path.isdir(upper) else None
    if below is None or below == mount:
        return Medium("overlay", mount.fstype, None)
    if below.fstype in _MEMORY:
        return Medium("memory", mount.fstype, None)
    return Medium("disk", mount.fstype, _device(below))


def _device(mount: Mount) -> tuple[int, int] | None:
    major, _, minor = mount.device.partition(":")
    if major.isdigit() and minor.isdigit() and int(major):
        return int(major), int(minor)
    if mount.source.startswith("/dev/"):  # btrfs numbers its subvolumes itself
        number = os.stat(mount.source).st_rdev
        return (os.major(number), os.minor(number)) if number else None
    return None


def bytes_written(device: tuple[int, int], sys: str = "/sys") -> int | None:
    """To this block device since the start of the kernel; None where the kernel does not count."""
    try:
        fd = os.open(f"{sys}/dev/block/{device[0]}:{device[1]}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 4096).split()[_SECTORS_WRITTEN]) * SECTOR
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return None


def device_name(device: tuple[int, int], sys: str = "/sys") -> str:
    """As in /dev: mmcblk0p2; "" where it has none."""
    try:
        return os.path.basename(os.readlink(f"{sys}/dev/block/{device[0]}:{device[1]}"))
    except OSError:
        return ""
