"""New, changed, gone; and never gone because a look failed."""

import pytest

from edgeguard.model import Observation, Status
from edgeguard.sensors.snapshot import Snapshot


def see(subject, status=Status.PRESENT, kind="k", **columns):
    return Observation(kind, subject, columns, 1, status)


def told(snapshot, *looks):
    return [(one.subject, one.status.name) for one in snapshot.update(looks, 2)]


def test_new_changed_gone():
    snapshot = Snapshot(frozenset({"pid"}))
    assert told(snapshot, see("a", x=1, pid=1), see("b", x=1)) == [("a", "PRESENT"), ("b", "PRESENT")]
    assert told(snapshot, see("a", x=1, pid=2), see("b", x=1)) == []
    assert told(snapshot, see("a", x=2, pid=2), see("b", x=1)) == [("a", "PRESENT")]
    assert told(snapshot, see("a", x=2)) == [("b", "ABSENT")]
    assert told(snapshot, see("a", x=2)) == []


def test_a_failed_look_makes_nothing_gone():
    snapshot = Snapshot()
    told(snapshot, see("a"), see("b"), see("c", kind="other"))

    def broken():
        yield see("a")
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        list(snapshot.update(broken(), 2))
    assert told(snapshot, see("*", Status.UNREADABLE), see("c", kind="other")) == [("*", "UNREADABLE")]
    assert told(snapshot, see("a"), see("b"), see("c", kind="other")) == [("*", "ABSENT")]
    assert set(snapshot.subjects("k")) == {"a", "b"}


def test_one_unreadable_subject_is_not_gone():
    snapshot = Snapshot()
    told(snapshot, see("a"), see("b"))
    assert told(snapshot, see("a", Status.UNREADABLE), see("b")) == [("a", "UNREADABLE")]
    assert told(snapshot, see("a"), see("b")) == [("a", "PRESENT")]


def test_live_news_is_not_told_twice():
    snapshot = Snapshot()
    assert snapshot.note(see("a", x=1))
    assert not snapshot.note(see("a", x=1))
    assert told(snapshot, see("a", x=1)) == []
    assert snapshot.note(see("a", Status.ABSENT))
    assert not snapshot.note(see("a", Status.ABSENT))
    assert told(snapshot) == []


def test_forget():
    snapshot = Snapshot()
    told(snapshot, see("a"))
    snapshot.forget()
    assert told(snapshot, see("a")) == [("a", "PRESENT")]
