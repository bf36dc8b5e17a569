"""What systemd is told, and what happens where it does not listen."""

from __future__ import annotations

import socket

import pytest

from edgeguard.daemon.notify import Notify


def test_a_listener_that_is_gone_does_not_end_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("systemd.daemon")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0edgeguard-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@edgeguard-test-notify")
        notify = Notify()
        notify.status("OK: nothing open")
        assert listener.recv(100) == b"STATUS=OK: nothing open"
    notify.status("WARN: 1 open finding")
    notify.watchdog()
