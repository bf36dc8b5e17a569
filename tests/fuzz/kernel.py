"""What the kernel says: netlink, events of files, uevents, /proc. It is trusted, but a container or a broken module may
say what no kernel should, and USB devices write their own descriptors.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from edgeguard.linux import (
    bpf,
    fanotify,
    inotify,
    mounts,
    netlink,
    procconn,
    procfs,
    procnet,
    procwatch,
    sockdiag,
    uevent,
    vitals,
)
from edgeguard.sensors import parse_modules, parse_mounts, parse_sysctl, parse_usb
from tests.fuzz.each import drain, each


def netlink_datagram(data: bytes) -> None:
    each(data, procconn.parse, netlink.attributes)
    each(data, lambda data: sockdiag.parse(socket.IPPROTO_TCP, data))
    each(data, lambda data: netlink.error_of(netlink.Message(2, 0, 0, 0, data)))
    each(data, lambda data: bpf.parse(memoryview(data.ljust(4096, b"\0")[:4096]), 0, min(len(data), 4096)))
    for message in netlink.messages(data):
        each(message.payload, lambda payload: sockdiag.parse(socket.IPPROTO_UDP, payload))
        each(message, netlink.error_of)


class _Inotify(procwatch.Watch):
    """The reader of a watch on /proc/sys, with events that nobody sent."""

    def __init__(self, data: bytes) -> None:
        self.mechanism = "inotify"
        self._paths = {1: "/proc/sys/x"}
        self._data = data

    def _chunks(self) -> Iterator[bytes]:
        yield self._data


def file_events(data: bytes) -> None:
    each(data, inotify.parse, lambda data: _Inotify(data).read())
    for event in fanotify.parse(data):
        fanotify.fsid_key(event.fsid)


class _Socket:
    """One datagram from the kernel, then none."""

    def __init__(self, data: bytes) -> None:
        self._waiting = [data]

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.pop()[:size], (0, 1)


def uevent_and_descriptors(data: bytes) -> None:
    for _action, path in uevent.read(_Socket(data)):  # type: ignore[arg-type]  # only recvfrom is used
        name = path.rpartition("/")[2]
        if parse_usb.is_device(name):
            parse_usb.port_order(name)
    found = parse_usb.interfaces_of(data)
    assert len(found) <= parse_usb.INTERFACES_MAX
    text = data.decode("utf-8", "surrogateescape")
    parse_usb.subject(parse_usb.hex4(text[:4]), parse_usb.hex4(text[4:8]), text[8:], "1-1")


def proc_files(data: bytes) -> None:
    each(data, procfs.parse_stat, procfs.parse_uid, procfs.parse_argv, _cgroup, parse_modules.parse, _mounts)
    each(data, lambda data: procfs.tty_name(int.from_bytes(data[:4], "little")))
    for family, state in ((socket.AF_INET, sockdiag.TCP_LISTEN), (socket.AF_INET6, sockdiag.TCP_CLOSE)):
        each(data, lambda data, family=family, state=state: procnet.parse(data, family, 6, state))
    each(data, vitals.load_permille, vitals.memory_available_kib, vitals.network_bytes, vitals.established)
    each(data, vitals.temperature_mc)
    value = os.fsdecode(data).strip()
    for key in ("kernel.sysrq", "kernel.core_pattern", "vm.mmap_min_addr", "user.max_user_namespaces"):
        parse_sysctl.level(key, value)


def _cgroup(data: bytes) -> None:
    path = procfs.parse_cgroup(data)
    procfs.unit_of(path)
    procfs.session_of(path)


def _mounts(data: bytes) -> None:
    for mount in mounts.parse(data):
        parse_mounts.category(mount)
        drain(parse_mounts.options(mount))
