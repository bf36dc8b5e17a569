"""What becomes of what sweeps find: deep sweeps' answers are looked at once more, whatever happens to the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeguard.daemon.rounds import Rounds
from edgeguard.daemon.sweeps import Request
from edgeguard.model import NOBODY, Actor, Observation, Origin
from edgeguard.sensors.look import LATER, unreadable

PATH = "/etc/passwd"
FOUND = unreadable(PATH, "config", "as a helper saw it", 5, Origin.SWEEP)


class Files:
    """A sensor that somebody keeps busy with touches of PATH."""

    def __init__(self, note: str = "") -> None:
        self.note = note
        self.looks: list[tuple[str, Actor, Origin]] = []

    def found(self, observation: Observation, *, always: bool = False) -> Observation | None:
        return observation if always else None

    def observe_path(self, path: str, now: int, actor: Actor = NOBODY, origin: Origin = Origin.LIVE) -> Observation:
        self.looks.append((path, actor, origin))
        return unreadable(path, "config", self.note, now, origin, actor)


def made(
    files: Files, state: str = "/nowhere", holding: Callable[[], bool] = lambda: False
) -> tuple[Any, list[Observation]]:
    taken: list[Observation] = []
    anything: Any = SimpleNamespace
    settings = anything(budget=anything(deep_s=86_400, sweep_s=3600), paths=anything(state=state))
    rounds: Any = Rounds(
        anything(),
        settings,
        anything(),
        anything(for_sweeps=dict),
        anything(),
        anything(save=lambda: True),
        anything(sensor=lambda _name: files),
        anything(state=lambda _subject, _text: None),
        anything(helper_well=lambda _verb: None),
        taken.append,
        lambda: None,
        holding,
    )
    return rounds, taken


def test_touches_do_not_keep_what_a_deep_sweep_found_from_being_told() -> None:
    rounds, taken = made(files := Files())
    rounds._found(FOUND)
    assert (taken, files.looks) == ([], []), "the look that follows the touch tells it"
    rounds._found_deep(FOUND)
    assert [seen.subject for seen in taken] == [PATH]
    assert files.looks == [(PATH, NOBODY, Origin.SWEEP)]


@pytest.mark.parametrize("way", ["_found", "_found_deep"])
def test_what_a_look_leaves_to_a_helper_is_not_unreadable(way: str) -> None:
    rounds, taken = made(files := Files(LATER))
    rounds._live_files[PATH] = FOUND.at
    getattr(rounds, way)(FOUND)
    assert len(files.looks) == 1
    assert taken == []


def test_what_waits_for_an_explanation_is_found_again_after_a_kill(tmp_path: Path) -> None:
    """It lies in memory only: the next sweep must not take it for told."""
    waits = True
    rounds, _ = made(Files(), str(tmp_path), lambda: waits)
    seen, swept = tmp_path / "observed.db", tmp_path / "observed.db.swept"
    seen.write_text("before")
    swept.write_text("after")
    rounds.adopt_swept()
    assert seen.read_text() == "before"
    waits = False
    rounds.adopt_swept()
    assert seen.read_text() == "after"
    assert not swept.exists()


@pytest.mark.parametrize("waits", [True, False])
def test_what_was_not_adopted_leaves_nothing_to_believe_in(tmp_path: Path, waits: bool) -> None:
    """The next sweep compares with what an earlier one saw, and that may be from before the clock was set."""
    rounds, _ = made(Files(), str(tmp_path), lambda: waits)
    (tmp_path / "observed.db.swept").write_text("after")
    rounds.sweeps.times.done(7)
    rounds._look_at_logs, rounds._look_at_findings = lambda _origin: None, lambda: None
    rounds._swept(Request(Origin.SWEEP), {"summary": {"written": True, "files": 1, "emitted": 0}})
    assert rounds.sweeps.times._began == (0 if waits else 7)
