"""A switch of images is told once, after a whole round, and again where that could not be noted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeguard.daemon.baselines import InForce, Running
from edgeguard.daemon.images import Images, summary
from edgeguard.linux import durable
from edgeguard.model import Severity

ANSWER = {"before": "pump 1", "now": "pump 2", "files": 812, "revision": 9, "back": False}


class World:
    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "baseline").mkdir()
        self.said: list[Any] = []
        self.troubles: list[Any] = []
        self.findings: list[Any] = []
        self.asked = 0
        self.answer: dict[str, Any] = dict(ANSWER)
        self.error = ""
        trouble = SimpleNamespace(
            image=self.troubles.append,
            helper_failed=lambda verb, error: self.troubles.append((verb, error)),
            helper_well=lambda _verb: None,
            spool=lambda _subject, detail: self.troubles.append(detail),
        )
        telling = SimpleNamespace(state=lambda what, text, **more: self.said.append((what, text, more["severity"])))
        river = SimpleNamespace(ledger=SimpleNamespace(open=lambda: self.findings))
        self.images = Images(str(base), self, river, telling, trouble)  # type: ignore[arg-type]

    def start(self, verb: str, _request: Any, message: Any, done: Any, **_more: Any) -> bool:
        """In place of helpers."""
        assert verb == "image"
        self.asked += 1
        if not self.error:
            message(self.answer)
        done(self.error)
        return True

    def arrive(self, *, problem: str = "", switched: bool = True) -> None:
        running = Running("pump 2", problem, switched)
        self.images.arrived(InForce(None, "fleet", "", b"", {}, None, running))  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_it_is_told_once_when_the_round_is_over(world: World) -> None:
    world.arrive()
    assert world.said == []
    world.images.round_over()
    world.images.round_over()
    assert world.said == [("image", "pump 1 -> pump 2: 812 files, all as signed", Severity.INFORMATIONAL)]
    assert (world.base / "baseline/ran").read_bytes() == b"9\n"
    assert world.asked == 1


def test_nothing_is_asked_where_no_other_image_ran(world: World) -> None:
    world.arrive(switched=False, problem="what runs is none of the images")
    world.images.round_over()
    assert (world.asked, world.said, world.troubles) == (0, [], ["what runs is none of the images"])


def test_a_helper_that_failed_is_asked_after_the_next_round(world: World) -> None:
    world.arrive()
    world.error = "took too long"
    world.images.round_over()
    assert world.said == []
    world.error = ""
    world.images.round_over()
    assert len(world.said) == 1


def test_what_cannot_be_noted_is_said_and_told_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    world.arrive()
    world.images.round_over()
    assert len(world.said) == 1
    assert "No space left" in world.troubles[-1]


def test_only_findings_about_files_count(world: World) -> None:
    world.findings = [SimpleNamespace(kind="file"), SimpleNamespace(kind="listener")]
    world.arrive()
    world.images.round_over()
    ((_, text, severity),) = world.said
    assert text == "pump 1 -> pump 2: 812 files, 1 not as signed, each a finding"
    assert severity is Severity.LOW


def test_the_sentence() -> None:
    assert summary({**ANSWER, "files": 1, "back": True}, 0) == (
        "pump 1 -> pump 2: 1 file, all as signed; the device fell back"
    )
