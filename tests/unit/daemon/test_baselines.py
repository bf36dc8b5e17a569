"""Asking for a revision: the answer comes when it is in force."""

from __future__ import annotations

from typing import Any

from edgeguard.daemon.baselines import Baselines


class FakeHelpers:
    def __init__(self) -> None:
        self.running: dict[str, tuple[Any, Any]] = {}

    def start(self, verb: str, _request: dict[str, Any], message: Any, done: Any, **_more: Any) -> bool:
        if verb in self.running:
            return False
        self.running[verb] = (message, done)
        return True

    def end(self, verb: str, error: str = "", **answer: Any) -> None:
        message, done = self.running.pop(verb)
        message(answer)
        done(error)


def asked(helpers: FakeHelpers, said: list[Any]) -> Baselines:
    return Baselines(
        helpers,  # type: ignore[arg-type]
        lambda _force: None,
        lambda _refused: None,
        lambda _may_learn: said.append("loaded"),
        lambda _verb, _error: said.append("failed"),
    )


def make(baselines: Baselines, said: list[Any]) -> None:
    assert baselines.make(
        "rebase", {}, said.append, lambda words: said.append(("done", words)), lambda: said.append("after")
    )


def test_after_comes_when_what_was_written_was_loaded() -> None:
    said: list[Any] = []
    helpers = FakeHelpers()
    make(asked(helpers, said), said)
    helpers.end("rebase", revision=2)
    assert said == [("done", {"revision": 2})]
    helpers.end("load")
    assert said[1:] == ["loaded", "after"]


def test_after_comes_also_where_it_cannot_be_loaded() -> None:
    said: list[Any] = []
    helpers = FakeHelpers()
    make(asked(helpers, said), said)
    helpers.end("rebase", revision=2)
    helpers.end("load", "took too long and was ended")
    assert said[1:] == ["failed", "after"]


def test_after_comes_where_a_load_runs_already() -> None:
    said: list[Any] = []
    helpers = FakeHelpers()
    baselines = asked(helpers, said)
    make(baselines, said)
    baselines.load()
    helpers.end("rebase", revision=2)
    assert said == [("done", {"revision": 2}), "after"]


def test_nothing_follows_where_nothing_was_written() -> None:
    said: list[Any] = []
    helpers = FakeHelpers()
    make(asked(helpers, said), said)
    helpers.end("rebase", problems=["line 3"])
    make(asked(helpers, said), said)
    helpers.end("rebase", "no key", name="Refused")
    assert "after" not in said
    assert not helpers.running
