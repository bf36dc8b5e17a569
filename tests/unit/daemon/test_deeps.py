"""Slices of the deep sweep, one after the other: what they say, what becomes of a failure, and when a round is over."""

from __future__ import annotations

from typing import Any

from edgeguard.daemon.deeps import FIRST_S, SLICES, Deeps


class Loop:
    def __init__(self) -> None:
        self.planned: list[tuple[float, Any]] = []

    def later(self, seconds: float, call: Any, slack: float = 0.0) -> None:
        del slack
        self.planned.append((seconds, call))


class Helpers:
    def __init__(self) -> None:
        self.started: list[tuple[dict[str, Any], Any, Any]] = []

    def start(self, verb: str, request: dict[str, Any], on_message: Any, on_done: Any, **_: Any) -> bool:
        assert verb == "deep"
        self.started.append((request, on_message, on_done))
        return True


class World:
    def __init__(self, period: float = 86_400) -> None:
        self.loop, self.helpers = Loop(), Helpers()
        self.failed: list[str] = []
        self.well = 0
        self.rounds: list[tuple[int, int]] = []
        self.taken: list[Any] = []
        made: Any = Deeps
        self.deeps = made(
            self.loop,
            self.helpers,
            period,
            lambda: {"watches": [], "manifest": None},
            self.taken.append,
            self.failed.append,
            self._well,
            lambda *facts: self.rounds.append(facts),
        )
        self.deeps.begin()

    def _well(self) -> None:
        self.well += 1

    def slice(self, *messages: dict[str, Any], error: str = "") -> float:
        """One slice that says this; seconds that it was waited for."""
        seconds, call = self.loop.planned.pop()
        assert not self.loop.planned
        call()
        _, on_message, on_done = self.helpers.started[-1]
        for message in messages:
            on_message(message)
        on_done(error)
        return seconds


def facts(files: int, emitted: int, complete: bool) -> dict[str, Any]:
    return {"deep": {"files": files, "bytes": 5, "emitted": emitted, "unreadable": 0, "complete": complete}}


def test_a_round_of_slices() -> None:
    world = World()
    assert world.slice(facts(3, 1, False)) == FIRST_S
    assert world.slice(facts(4, 0, True)) == 86_400 / SLICES
    assert world.slice(facts(2, 0, True)) == 86_400 / SLICES
    assert world.rounds == [(7, 1), (2, 0)]
    assert (world.well, world.failed) == (3, [])


def test_where_it_stopped_is_known_although_the_disk_does_not_take_it() -> None:
    world = World()
    said = facts(3, 0, False)
    said["deep"] |= {"position": b"here", "problem": "No space left on device"}
    world.slice(said)
    assert world.failed == ["where it stopped is not kept: No space left on device"]
    world.slice(facts(4, 0, True))
    assert [request["position"] for request, _, _ in world.helpers.started] == [None, b"here"]
    assert world.rounds == [(7, 0)], "what was read counts"
    assert world.well == 1
    world.slice(facts(1, 0, False))
    assert world.helpers.started[-1][0]["position"] is None


def test_a_failure_is_told_and_the_next_slice_comes_all_the_same() -> None:
    world = World()
    world.slice(error="took too long")
    world.slice()
    world.slice({"observations": ["nonsense"]}, facts(1, 0, True))
    assert len(world.failed) == 3
    assert world.rounds == [(1, 0)]


def test_a_period_of_any_length_makes_a_sane_pause() -> None:
    assert World(1).slice(facts(1, 0, True)) == 1.0
    longest = World(2**63 - 1)
    longest.slice(facts(1, 0, True))
    assert longest.slice(facts(1, 0, True)) <= 7 * 86_400
