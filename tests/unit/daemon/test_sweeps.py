"""Sweeps one after the other: no wish is dropped, none makes a queue, and nothing that was told is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeguard.daemon import sweeping
from edgeguard.daemon.frames import watches_to_plain
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.kept_file import Kept
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sweeps import TARGETS_MAX, Request, Sweeps, adopt
from edgeguard.daemon.times import Disturbances, Times
from edgeguard.model import Observation, Origin, Watch
from edgeguard.sensors.looker import RACY_NS
from edgeguard.sensors.walk import Walker
from edgeguard.settings import Paths, Settings
from tests import lent


class FakeHelpers:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.message: Any = None
        self.done: Any = None

    def start(self, _verb: str, request: dict[str, Any], message: Any, done: Any, **_more: Any) -> bool:
        self.asked.append(request)
        self.message, self.done = message, done
        return True


class Still(Disturbances):
    """Nobody sets the clock, and nobody mounts."""

    def __init__(self) -> None:
        pass

    def any(self) -> bool:
        return False


def made() -> tuple[Sweeps, FakeHelpers]:
    fake: Any = FakeHelpers()
    times = Times(3600.0, Still)
    sweeps = Sweeps(fake, lambda _seen: None, lambda _request, _answer: None, lambda _error: None, dict, times)
    return sweeps, fake


def test_what_nobody_waits_for_is_joined() -> None:
    sweeps, helpers = made()
    sweeps.ask(Request(Origin.SWEEP))
    for number in range(50):
        sweeps.ask(Request(Origin.SWEEP, targets=(f"/srv/{number % 5}",)))
        sweeps.ask(Request(Origin.SWEEP, compare=number == 7))
    awaited: list[dict[str, Any]] = []
    sweeps.ask(Request(Origin.SWEEP, full=True, on_done=awaited.append))
    while sweeps.running:
        helpers.done("")
    assert [(len(asked["targets"]), asked["compare"], asked["full"]) for asked in helpers.asked] == [
        (0, False, False),
        (5, False, False),
        (0, True, False),
        (0, False, True),
    ]
    assert awaited == [{}]


def test_a_thorough_wish_stays_thorough() -> None:
    for one, other, cached in ((True, True, True), (True, False, False), (False, True, False), (False, False, False)):
        joined = Request(Origin.SWEEP, full=True, cached=one)
        assert joined.join(Request(Origin.SWEEP, full=True, cached=other))
        assert (joined.full, joined.cached) == (True, cached)
    joined = Request(Origin.SWEEP)
    assert joined.join(Request(Origin.SWEEP, full=True, cached=True))
    assert (joined.full, joined.cached, joined.again().cached) == (True, True, True)


def test_too_many_targets_are_a_whole_sweep() -> None:
    sweeps, helpers = made()
    sweeps.ask(Request(Origin.SWEEP))
    for number in range(TARGETS_MAX + 1):
        sweeps.ask(Request(Origin.SWEEP, targets=(f"/srv/{number}",)))
    helpers.done("")
    assert helpers.asked[-1]["targets"] == []


@pytest.mark.parametrize(
    ("how", "listing"),
    [
        ({}, False),
        ({"full": True}, True),
        ({"compare": True}, True),
        ({"on_done": lambda _answer: None}, True),
        ({"origin": Origin.DOWN}, True),
    ],
)
def test_who_has_everything_listed(how: dict[str, Any], listing: bool) -> None:
    assert Request(how.pop("origin", Origin.SWEEP), **how).listing is listing


def test_when_the_last_one_began_goes_to_the_next() -> None:
    """A look at some paths changes nothing of that, and one that fails leaves nothing."""
    sweeps, helpers = made()
    for targets, began, told in (
        ((), 7, None),
        (("/a",), 8, None),
        ((), 9, 7),
        ((), None, 9),
        (("/a",), 8, None),
        ((), 10, None),
        ((), 11, 10),
    ):
        sweeps.ask(Request(Origin.SWEEP, targets=targets))
        assert helpers.asked[-1]["since"] == told
        if began is not None:
            helpers.message({"summary": {"began": began}})
        helpers.done("" if began is not None else "killed")


def test_what_nobody_waits_for_gives_way() -> None:
    sweeps, helpers = made()
    sweeps.ask(Request(Origin.SWEEP, targets=("/opt/database",)))
    helpers.done("")
    sweeps.ask(Request(Origin.SWEEP, targets=("/etc/passwd",), on_done=lambda _answer: None))
    assert [asked["low"] for asked in helpers.asked] == [True, False]


def test_a_failed_sweep_is_asked_again_as_it_was() -> None:
    again = Request(Origin.DOWN, full=True, compare=True, targets=("/a",), on_done=lambda _answer: None).again()
    assert (again.origin, again.full, again.compare, again.targets, again.on_done) == (
        Origin.DOWN,
        True,
        True,
        ("/a",),
        None,
    )


class Heard:
    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.said: list[dict[str, Any]] = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)

    def flush(self) -> None: ...

    def say(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    def progress(self, *_words: Any) -> None: ...


REQUEST = {
    "watches": watches_to_plain((Watch("/etc", "config"),)),
    "origin": int(Origin.SWEEP),
    "manifest": None,
    "low": False,
    "targets": [],
    "full": False,
    "cached": False,
    "compare": False,
}


@pytest.fixture
def device(tmp_path: Path) -> Settings:
    root, state = tmp_path / "root", tmp_path / "state"
    for path in (root / "etc", state):
        path.mkdir(parents=True)
    (root / "etc" / "passwd").write_text("root")
    return Settings(paths=Paths(root=str(root), state=str(state)))


def swept(settings: Settings, *, keeping: bool = True, **request: Any) -> tuple[list[str], dict[str, Any]]:
    """What a sweep told, and its summary."""
    heard = Heard()
    sweeping.sweep(settings, {**REQUEST, **request}, heard)  # type: ignore[arg-type]
    summary = heard.said[-1]["summary"]
    if summary["written"] and keeping:
        adopt(settings.paths.state)
    return [seen.subject for seen in heard.seen], summary


def test_what_was_told_is_told_again_until_it_is_kept(device: Settings) -> None:
    """The daemon may be killed between hearing of a change and keeping it."""
    swept(device)
    assert swept(device)[0] == []
    Path(device.paths.root, "etc/passwd").write_text("root, changed")
    assert swept(device, keeping=False)[0] == ["/etc/passwd"]
    assert swept(device)[0] == ["/etc/passwd"]
    assert swept(device)[0] == []


def test_the_time_goes_to_the_helper_and_the_next_comes_from_it(
    device: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed: list[int] = []
    monkeypatch.setattr(Walker, "believe", lambda _walker, until: believed.append(until))
    before = time.time_ns()
    began = swept(device)[1]["began"]
    assert before <= began <= time.time_ns()
    assert swept(device, since=None)[1]["began"] > began
    assert believed == []
    assert swept(device, since=began)[0] == []
    assert believed == [began - RACY_NS]


def test_what_was_not_kept_is_nothing_to_believe_in(device: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(kept: Kept) -> bool:
        kept.problem = "no space left on device"
        return False

    monkeypatch.setattr(Kept, "keep", keep)
    assert swept(device)[1]["began"] == 0


@pytest.mark.parametrize(
    "damaged",
    [lambda _old: b"", lambda old: old[:-9], lambda old: b"x" * len(old), lambda old: old[:60]],
    ids=["empty", "cut short", "of something else", "only begun"],
)
def test_a_damaged_cache_is_made_anew(device: Settings, damaged: Callable[[bytes], bytes]) -> None:
    observed = Path(device.paths.state, "observed.db")
    for number in range(300):
        Path(device.paths.root, f"etc/{number}").write_text(str(number))
    swept(device)
    whole = observed.read_bytes()
    observed.write_bytes(damaged(whole))
    summary = swept(device)[1]
    assert (summary["damaged"], summary["written"], summary["subjects"]) == (True, True, 302)
    assert swept(device)[1]["damaged"] is False
    assert len(observed.read_bytes()) == len(whole)


def test_what_was_seen_with_other_digests_is_made_anew(device: Settings) -> None:
    swept(device)
    summary = swept(device, digest="blake2b")[1]
    assert (summary["damaged"], summary["written"]) == (False, True)
    assert swept(device, digest="blake2b")[1]["notes"] == []


def test_a_helper_that_cannot_start_leaves_no_descriptor(tmp_path: Path) -> None:
    loop = Loop()
    helpers = Helpers(loop, str(tmp_path / "gone"), "")
    before = len(lent.open_now())
    said: list[str] = []
    real, os.posix_spawn = os.posix_spawn, _no_spawn  # type: ignore[assignment]
    try:
        assert helpers.start("load", {}, lambda _message: None, said.append, timeout_s=1)
    finally:
        os.posix_spawn = real
    assert len(lent.open_now()) == before
    loop.turn(0)
    assert said == ["cannot start: Resource temporarily unavailable"]


def _no_spawn(*_words: Any, **_more: Any) -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")
