"""Requests to edgeguard-act: what is on disk when they leave, and how often it is written for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.remedying import Remedying
from edgeguard.model import Mode
from edgeguard.remediations import ActRequest, Reply


class World:
    """Writes down what happened, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        self.replies: list[Any] = []
        self.open: list[SimpleNamespace] = []
        self.loop = Loop()
        ledger = SimpleNamespace(annotate=lambda *_: None, open=lambda: self.open)
        keeping: Any = SimpleNamespace(
            save=lambda: self.happened.append("save"), plan=lambda *, urgent: None, ledger=ledger
        )
        telling: Any = SimpleNamespace(state=lambda *_words, **_more: 0)
        client: Any = SimpleNamespace(send=self.send)
        monkeypatch.setattr(
            "edgeguard.daemon.remedying.plan", lambda change, _mode, nonce: ActRequest("stop-process", change, nonce)
        )
        self.remedying = Remedying(
            self.loop, client, keeping, telling, lambda: Mode.ENFORCE, lambda _finding: None, lambda: None
        )

    def send(self, request: ActRequest, on_reply: Any) -> None:
        self.happened.append(request.finding)
        self.replies.append(lambda reply: on_reply(request, reply))


def test_a_burst_of_findings_is_one_write_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    for finding in ("F-1", "F-2", "F-3"):
        world.remedying.remedy(finding)  # type: ignore[arg-type]  # the plan above takes it as the finding's name
    assert world.happened == []
    world.loop.turn(0)
    assert world.happened == ["save", "F-1", "F-2", "F-3"]
    world.remedying.remedy("F-4")  # type: ignore[arg-type]
    world.loop.turn(0)
    assert world.happened[4:] == ["save", "F-4"]


def test_another_try_is_for_what_is_still_open_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.open = [SimpleNamespace(id="F-1")]
    for finding in ("F-1", "F-2"):
        world.remedying.remedy(finding)  # type: ignore[arg-type]
    world.loop.turn(0)
    world.happened.clear()
    for reply in world.replies:
        reply(Reply(ok=False, state="failed", detail="", retry_s=1))
    for _, _, timer in world.loop._timers:
        timer.due = timer.latest = 0.0
    world.loop.turn(0)
    world.loop.turn(0)
    assert world.happened == ["save", "F-1"]
