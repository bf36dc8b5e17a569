"""The raw interfaces under `host`, `usb` and `health`: which writes are told, what the kernel's filter lets through."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from edgeguard.errors import Unavailable
from edgeguard.linux import adjtimex, procwatch, uevent
from edgeguard.sensors import Context
from edgeguard.sensors.usb import Usb


def mechanisms() -> list[str]:
    return ["inotify", "fanotify"] if os.geteuid() == 0 else ["inotify"]


@pytest.mark.parametrize("mechanism", mechanisms())
def test_only_writes_are_told_and_each_once(tmp_path: Path, mechanism: str) -> None:
    paths = [tmp_path / "a", tmp_path / "b\n\x1b"]
    for path in paths:
        path.write_text("1")
    watch = procwatch.Watch(mechanism)
    for path in paths:
        watch.add(str(path))
    assert watch.prove(str(paths[0]))
    assert watch.read() == []
    paths[0].read_text()
    assert watch.read() == []  # the proof's interest in opening is gone
    for _ in range(3):
        paths[1].write_text("2")
    assert [written.path for written in watch.read()] == [str(paths[1])]
    watch.close()


def test_an_event_that_cannot_be_read_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = procwatch.Watch("inotify")

    def refuse(_fd: int, _size: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(procwatch.os, "read", refuse)
    assert watch.read() == [procwatch.Written("", None)]
    monkeypatch.undo()
    watch.close()


def test_half_an_event_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = procwatch.Watch("inotify")
    monkeypatch.setattr(watch, "_chunks", lambda: iter([struct.pack("iIII", 1, 2, 0, 0)[:11]]))
    assert watch.read() == [procwatch.Written("", None)]
    watch.close()


def test_what_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    watch = procwatch.Watch("inotify")
    with pytest.raises(OSError, match="No such file"):
        watch.add(str(tmp_path / "nothing"))
    watch.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="only without CAP_SYS_ADMIN")
def test_fanotify_without_right_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        procwatch.Watch("fanotify")


def run(program: list[tuple[int, int, int, int]], packet: bytes) -> bool:
    """Classic BPF as the kernel runs it, as far as our program uses it: is the packet let through?"""
    at, accumulator = 0, 0
    while True:
        code, jump_true, jump_false, constant = program[at]
        at += 1
        if code == uevent._LOAD_WORD:
            if constant + 4 > len(packet):
                return False  # the kernel drops it too
            (accumulator,) = struct.unpack_from(">I", packet, constant)
        elif code == uevent._IF_EQUAL:
            at += jump_true if accumulator == constant else jump_false
        else:
            return constant != 0


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"add@/module/usbhid\0ACTION=add\0", True),
        (b"remove@/module/usbhid\0", True),
        (b"add@/devices/virtual/net/x\0", False),
        (b"change@/module/usbhid\0", False),
        (b"remove@/devices/module\0", False),
        (b"add@", False),
    ],
)
def test_filter(message: bytes, told: bool) -> None:
    assert run(uevent._program((b"add@/module/", b"remove@/module/")), message) is told


def test_the_kernel_takes_the_filter() -> None:
    try:
        sock = uevent.listen((b"add@/module/", b"remove@/module/"))
    except OSError as error:
        pytest.skip(f"no uevents here: {error}")
    with sock:
        assert list(uevent.read(sock)) == []


def test_only_the_kernel_is_believed() -> None:
    class Socket:
        def __init__(self) -> None:
            self.waiting = [
                (b"add@/module/evil\0", (4711, 0)),
                (b"add@/module/usbhid\0ACTION=add", (0, 1)),
                (b"x", (0, 1)),
            ]

        def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
            if not self.waiting:
                raise BlockingIOError
            return self.waiting.pop(0)

    sock: socket.socket = Socket()  # type: ignore[assignment]
    assert list(uevent.read(sock)) == [("add", "/module/usbhid")]


def test_the_clock_can_be_asked() -> None:
    assert adjtimex.synchronised() in (True, False)


def test_pyudev_gives_a_monitor_here() -> None:
    """What a machine with USB would start with; there need not be any USB for it."""
    sensor = Usb(Context())
    try:
        monitor = sensor._open("kernel")
    except (OSError, ImportError) as error:
        pytest.skip(f"no pyudev or no netlink here: {error}")
    assert monitor.fileno() >= 0
    assert monitor.poll(timeout=0) is None
