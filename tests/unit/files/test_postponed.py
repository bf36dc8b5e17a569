"""What is left to helpers: at once the first time, and ever so often where somebody goes on touching it."""

import pytest

from edgeguard.model import NOBODY, Actor
from edgeguard.sensors import postponed as module
from edgeguard.sensors.postponed import Postponed

ACTOR = Actor(pid=7)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_pause_is_as_long_as_the_answer_took(clock):
    postponed = Postponed()
    postponed.leave("/large", ACTOR)
    assert list(postponed.ask()) == ["/large"]
    postponed.leave("/large", NOBODY)
    assert list(postponed.ask()) == []
    clock.now += 2
    assert postponed.answered("/large") == ACTOR
    assert postponed.answered("/large") == NOBODY
    assert postponed.due == clock.now + 2 * module.SHARE
    clock.now = postponed.due
    assert list(postponed.ask()) == ["/large"]
    assert postponed.empty


def test_no_pause_is_longer_than_a_minute(clock):
    postponed = Postponed()
    postponed.leave("/large", ACTOR)
    assert list(postponed.ask()) == ["/large"]
    postponed.leave("/large", ACTOR)
    assert postponed.due == clock.now + module.PAUSE_MAX_S, "no answer comes"
    clock.now += 50
    postponed.answered("/large")
    assert postponed.due == clock.now + module.PAUSE_MAX_S


def test_more_than_there_is_room_for_is_asked_all_the_same(clock):
    postponed = Postponed()
    wanted = {f"/{number}" for number in range(3 * module.PATHS_MAX)}
    for path in sorted(wanted):
        postponed.leave(path, ACTOR)
    assert set(postponed.ask()) == wanted
    for path in sorted(wanted):
        postponed.leave(path, ACTOR)
    asked = set(postponed.ask())
    clock.now += module.PAUSE_MAX_S
    assert asked | set(postponed.ask()) == wanted
    assert len(postponed._pauses) == len(postponed._actors) == module.PATHS_MAX
