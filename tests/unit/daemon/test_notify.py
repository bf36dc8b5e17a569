"""What systemd is told, and what happens where it does not listen."""

from __future__ import annotations

import contextlib
import socket

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.notify import Notify


def test_a_listener_that_is_gone_does_not_end_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("systemd.daemon")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0edgeguard-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@edgeguard-test-notify")
        notify = Notify(Loop())
        notify.status("OK: nothing open")
        assert listener.recv(100) == b"STATUS=OK: nothing open"
    notify.status("WARN: 1 open finding")
    notify.watchdog()


def test_ready_is_said_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost once, systemd would wait for it in vain and end the daemon, start after start."""
    pytest.importorskip("systemd.daemon")
    monkeypatch.setenv("NOTIFY_SOCKET", "@edgeguard-test-ready")
    monkeypatch.setattr("edgeguard.daemon.notify.AGAIN_S", 0.01)
    loop = Loop()
    Notify(loop).ready()  # nobody listens yet
    loop.turn(0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0edgeguard-test-ready")
        listener.setblocking(False)
        heard = b""
        for _ in range(20):
            loop.turn(0.05)
            with contextlib.suppress(BlockingIOError):
                heard += listener.recv(100)
    assert heard == b"READY=1", "once, not again"
