"""The daemon's half of the conversation with edgeguard-act: whatever goes wrong is a reply."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.remediations import ActRequest, Reply
from edgeguard.remediations.client import Client


def test_no_descriptor_left_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    loop = Loop()
    client = Client(loop, "/nowhere/act.sock")
    answers: list[tuple[str, Reply]] = []
    monkeypatch.setattr(socket, "socket", exhausted)
    for finding in ("F-1", "F-2"):
        client.send(
            ActRequest("stop-process", finding, 1), lambda request, reply: answers.append((request.finding, reply))
        )
    for _ in range(3):
        loop.turn(0)
    assert [finding for finding, _ in answers] == ["F-1", "F-2"]
    assert all(not reply.ok and "Too many open files" in reply.detail for _, reply in answers)
