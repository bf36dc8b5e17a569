"""The daemon's half of the conversation with edgeguard-act: whatever goes wrong is a reply."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.remediations import ActRequest, Reply
from edgeguard.remediations.client import Client, parse_reply
from edgeguard.remediations.undo import UndoStore


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


@pytest.mark.parametrize("data", [b"", b"[" * 4096, b'{"a":' * 1500, b'{"nonce":1}', b"null", b"\xff\n"])
def test_an_answer_that_makes_no_sense_is_a_failure(data: bytes) -> None:
    assert parse_reply(data, 1).state == "failed"


def test_an_undo_record_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_bytes(b"[" * 100_000)
    (tmp_path / "half.json").write_bytes(b'{"v":1,')
    assert UndoStore(str(tmp_path)).all() == []
