"""Hard links: a touched name that nobody watches leads to the watched one, with one search for each inode."""

import io
import os

import pytest

from edgeguard.model import NOBODY, Actor, Origin, Watch
from edgeguard.sensors import links as module
from edgeguard.sensors import revisit, sweep
from edgeguard.sensors.links import Links

ACTOR = Actor(pid=7)


@pytest.fixture
def tree(tmp_path):
    for name in ("watched", "beside"):
        (tmp_path / name).mkdir()
    (tmp_path / "watched/a").write_bytes(b"a")
    (tmp_path / "watched/single").write_bytes(b"b")
    os.link(tmp_path / "watched/a", tmp_path / "beside/a")
    (tmp_path / "beside/own").write_bytes(b"own")
    os.link(tmp_path / "beside/own", tmp_path / "beside/own2")
    return tmp_path


def test_a_search_is_asked_for_once_and_its_answer_is_kept(tree):
    links = Links(str(tree))
    assert links.touched("/beside/a", ACTOR) == ()
    assert links.touched("/beside/a", NOBODY) == ()
    assert list(links.ask()) == ["/beside/a"]
    assert links.found("/watched/a") == ACTOR
    assert links.found("/watched/single") == NOBODY
    assert links.touched("/beside/a", ACTOR) == ("/watched/a",)
    assert list(links.ask()) == []
    links.forget()
    links.touched("/beside/a", ACTOR)
    assert links.due < float("inf")


def test_what_did_not_fit_into_one_request_is_asked_for_when_it_is_touched_again(tree, monkeypatch):
    monkeypatch.setattr(module, "WANTED_MAX", 1)
    links = Links(str(tree))
    for _ in range(3):
        links.touched("/beside/a", ACTOR)
        links.touched("/beside/own", ACTOR)
    assert list(links.ask()) == ["/beside/a"]
    assert links.found("/watched/a") == ACTOR
    links.touched("/beside/own", ACTOR)
    monkeypatch.setattr(module.time, "monotonic", lambda: links.due)
    assert list(links.ask()) == ["/beside/own"]
    assert len(links._actors) == 2


def test_requests_that_follow_each_other_come_ever_less_often(tree, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    links = Links(str(tree))
    pauses = []
    for _ in range(12):
        links.touched("/beside/a", ACTOR)
        pauses.append(links.due - now[0])
        now[0] = max(now[0], links.due)
        assert list(links.ask()) == ["/beside/a"]
        links.forget()
    assert pauses[1:3] == [module.ASK_S, 2 * module.ASK_S]
    assert pauses[-1] == module.ASK_MAX_S
    now[0] += 1000
    links.touched("/beside/a", ACTOR)
    assert list(links.ask())
    links.forget()
    links.touched("/beside/a", ACTOR)
    assert links.due - now[0] == module.ASK_S


def test_the_helper_finds_the_watched_name(tree):
    watches = [Watch("/watched", "config")]
    observed = io.BytesIO()
    with open(tree / "manifest", "wb") as manifest:
        sweep.learn(watches, str(tree), manifest, observed)
    observed.seek(0)
    seen = []
    revisit.revisit(
        watches, str(tree), None, ["/beside/a", "/beside/own"], 1, Origin.SWEEP, seen.append, observed_in=observed
    )
    assert [item.subject for item in seen] == ["/watched/a"]


def test_a_damaged_memory_is_said(tree):
    summary = revisit.revisit(
        [Watch("/watched", "config")],
        str(tree),
        None,
        ["/beside/a"],
        1,
        Origin.SWEEP,
        lambda _: None,
        observed_in=io.BytesIO(b"EGOBSRV1" + bytes(40)),
    )
    assert summary.notes
