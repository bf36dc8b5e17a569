"""The life of findings."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import ANNA, NOW, RULES, World, file, listener

from edgeguard.errors import ControlError, DecodeError
from edgeguard.evaluate import ledger as room
from edgeguard.evaluate.engine import Engine
from edgeguard.evaluate.ledger import ALPHABET, Ledger
from edgeguard.model import NOBODY, Observation, Origin, Rule, Severity, State, Status, Transition, Waiver

ENGINE = Engine(RULES, (), World())
BAD = b"\2" * 32


def feed(ledger, observation, now=NOW, engine=ENGINE):
    return ledger.apply(engine.evaluate(observation, now), now)


def steps(changes):
    return [(change.transition.value, change.finding.code) for change in changes]


def test_opens_repeats_changes_resolves():
    ledger = Ledger()
    assert steps(feed(ledger, file(sha256=BAD))) == [("opened", "EG-FILE-002")]
    assert steps(feed(ledger, file(sha256=BAD, at=NOW + 5))) == [("repeated", "EG-FILE-002")]
    assert steps(feed(ledger, file(sha256=b"\3" * 32, at=NOW + 9))) == [("changed", "EG-FILE-002")]
    (finding,) = ledger.open()
    assert (finding.count, finding.first_seen, finding.last_seen) == (3, NOW, NOW + 9)
    (change,) = feed(ledger, file(at=NOW + 20), NOW + 20)
    assert change.transition is Transition.RESOLVED
    assert change.finding.resolved_at == NOW + 20
    assert ledger.open() == []
    assert [f.state for f in ledger.all()] == [State.RESOLVED]


def test_a_new_file_that_is_deleted_resolves():
    ledger = Ledger()
    assert steps(feed(ledger, file("/usr/sbin/x"))) == [("opened", "EG-FILE-001")]
    assert steps(feed(ledger, file("/usr/sbin/x", status=Status.ABSENT))) == [("resolved", "EG-FILE-001")]


def test_unreadable_neither_opens_nor_resolves_others():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD))
    assert steps(feed(ledger, file(status=Status.UNREADABLE))) == [("opened", "EG-FILE-007")]
    assert {f.code for f in ledger.open()} == {"EG-FILE-002", "EG-FILE-007"}
    assert ("resolved", "EG-FILE-007") in steps(feed(ledger, file(sha256=BAD)))


def test_a_flapping_finding_keeps_its_id_and_count():
    ledger = Ledger()
    (first,) = feed(ledger, listener())
    feed(ledger, listener(status=Status.ABSENT, at=NOW + 1))
    (again,) = feed(ledger, listener(at=NOW + 2))
    assert again.transition is Transition.OPENED
    assert again.finding.id == first.finding.id
    assert (again.finding.first_seen, again.finding.count) == (NOW + 2, 2)


def test_ids_can_be_typed():
    ledger = Ledger()
    (change,) = feed(ledger, listener())
    name = change.finding.id
    assert name.startswith("F-")
    assert len(name) == 6
    assert set(name[2:]) <= set(ALPHABET)
    for typed in (name, name.lower(), name[2:], name[:4]):
        assert ledger.find(typed) == [change.finding]
    assert ledger.find("") == ledger.find("F-") == []


def test_ids_grow_on_collision(monkeypatch):
    digits = iter(["0" * 26, "0" * 25 + "1", "0000A" + "0" * 21])
    monkeypatch.setattr(room, "_digits", lambda key: next(digits))
    ledger = Ledger()
    for port in (1, 2, 3):
        feed(ledger, listener(f"tcp/0.0.0.0:{port}"))
    assert sorted(f.id for f in ledger.open()) == ["F-0000", "F-00000", "F-0000A"]


def test_the_actor_is_kept_and_completed():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD, actor=NOBODY))
    (change,) = feed(ledger, file(sha256=BAD, actor=ANNA))
    assert change.transition is Transition.CHANGED
    feed(ledger, file(sha256=BAD, actor=NOBODY, origin=Origin.SWEEP))
    assert ledger.open()[0].actor == ANNA
    feed(ledger, file(sha256=b"\3" * 32, actor=NOBODY, origin=Origin.SWEEP, at=NOW + 60_000))
    assert ledger.open()[0].actor == NOBODY  # nobody saw who did this one


def test_the_look_that_follows_a_sweep_at_once_tells_who_did_it_and_when():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD, actor=NOBODY, origin=Origin.DOWN))
    (change,) = feed(ledger, file(sha256=BAD, actor=ANNA, at=NOW + 100))
    assert change.transition is Transition.CHANGED
    assert (change.finding.actor, change.finding.origin) == (ANNA, Origin.LIVE)


def test_who_touches_a_file_later_did_not_change_it():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD, actor=NOBODY, origin=Origin.DOWN))
    (change,) = feed(ledger, file(sha256=BAD, actor=ANNA, at=NOW + 3_600_000))
    assert change.transition is Transition.REPEATED
    assert (change.finding.actor, change.finding.origin) == (NOBODY, Origin.DOWN)


def test_waiver_suppresses_until_it_ends():
    waiver = Waiver("EG-FILE-002", "/usr/sbin/*", "ops@x", "hotfix", NOW + 1000)
    engine = Engine(RULES, (waiver,), World())
    ledger = Ledger()
    ledger.govern(engine, NOW)
    (change,) = feed(ledger, file(sha256=BAD), engine=engine)
    assert change.transition is Transition.SUPPRESSED
    assert "hotfix" in change.finding.waiver
    assert "2027-01-15" in change.finding.waiver
    assert ledger.open() == []
    assert ledger.tick(NOW + 999) == []
    (change,) = ledger.tick(NOW + 1000)
    assert (change.transition, change.finding.waiver) == (Transition.OPENED, "")


def test_acceptance_covers_what_was_seen_and_nothing_else():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD))
    name = ledger.open()[0].id
    with pytest.raises(ControlError, match="reason"):
        ledger.accept(name, "anna", " ", NOW)
    change = ledger.accept(name, "anna", "hotfix 1182", NOW)
    assert change.transition is Transition.SUPPRESSED
    assert steps(feed(ledger, file(sha256=BAD, at=NOW + 1))) == [("repeated", "EG-FILE-002")]
    (change,) = feed(ledger, file(sha256=b"\3" * 32, at=NOW + 2))
    assert change.transition is Transition.OPENED
    assert ledger.open()[0].observed == {"sha256": b"\3" * 32}


def test_acceptance_ends_and_can_be_retracted():
    ledger = Ledger()
    feed(ledger, listener())
    name = ledger.open()[0].id
    ledger.accept(name, "anna", "test", NOW, until=NOW + 10)
    assert steps(ledger.tick(NOW + 10)) == [("opened", "EG-PORT-001")]
    ledger.accept(name, "anna", "test", NOW + 10)
    assert ledger.retract(name, NOW + 11).transition is Transition.OPENED
    assert ledger.retract(name, NOW + 11) is None
    with pytest.raises(ControlError):
        ledger.accept("F-ZZZZZZ", "anna", "test", NOW)


def test_acceptance_survives_a_pause_of_its_subject():
    ledger = Ledger()
    feed(ledger, listener())
    ledger.accept(ledger.open()[0].id, "anna", "ours", NOW)
    assert steps(feed(ledger, listener(status=Status.ABSENT))) == [("resolved", "EG-PORT-001")]
    assert steps(feed(ledger, listener(at=NOW + 5))) == [("suppressed", "EG-PORT-001")]


def test_a_full_ledger_counts_and_prefers_the_worse():
    ledger = Ledger(findings_max=3)
    for name in "abcde":
        feed(ledger, file(f"/usr/sbin/{name}"))  # low
    assert ledger.overflow == {"EG-FILE-001": 2}
    feed(ledger, file(sha256=BAD))  # critical
    assert ledger.open()[0].code == "EG-FILE-002"
    assert len(ledger) == 3
    assert ledger.overflow == {"EG-FILE-001": 3}


def test_resolved_ones_are_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(room, "RESOLVED_MAX", 5)
    ledger = Ledger()
    for port in range(20):
        feed(ledger, listener(f"tcp/0.0.0.0:{port}"))
        feed(ledger, listener(f"tcp/0.0.0.0:{port}", status=Status.ABSENT))
    assert len(ledger.all()) == 5
    ledger.tick(NOW + room.RESOLVED_MS + 1)
    assert ledger.all() == []


def test_a_new_baseline_closes_what_it_covers():
    ledger = Ledger()
    ledger.govern(ENGINE, NOW)
    feed(ledger, file(sha256=BAD))
    world = World()
    world.table["file", "/usr/sbin/sshd"] = {**world.table["file", "/usr/sbin/sshd"], "sha256": BAD}
    assert steps(ledger.govern(Engine(RULES, (), world), NOW + 1)) == [("resolved", "EG-FILE-002")]


def test_a_rule_that_is_gone_takes_its_findings_along():
    ledger = Ledger()
    feed(ledger, listener())
    assert steps(ledger.govern(Engine(RULES[:2], (), World()), NOW + 1)) == [("resolved", "EG-PORT-001")]


def test_governing_again_changes_and_counts_nothing():
    ledger = Ledger()
    feed(ledger, listener())
    feed(ledger, file(status=Status.ABSENT))
    before = ledger.all()
    assert ledger.govern(ENGINE, NOW + 1) == []
    assert ledger.all() == before


def test_a_severer_rule_changes_the_finding():
    ledger = Ledger()
    feed(ledger, listener())
    severe = [rule._replace(severity=Severity.CRITICAL) for rule in RULES]
    (change,) = ledger.govern(Engine(severe, (), World()), NOW)
    assert (change.transition, change.finding.severity, change.finding.count) == (
        Transition.CHANGED,
        Severity.CRITICAL,
        1,
    )


def test_undecided_asks_for_attention_only():
    rule = Rule("r", "EG-PROC-001", "process", Severity.CRITICAL, "t", (), (room_condition(),))
    engine = Engine((rule,), (), World())
    ledger = Ledger()
    (change,) = feed(ledger, Observation("process", "x", {"exe_state": None}, NOW), engine=engine)
    assert change.finding.severity is Severity.MEDIUM
    assert change.finding.note == "could not be decided: exe_state is not known"
    (change,) = feed(ledger, Observation("process", "x", {"exe_state": "deleted"}, NOW), engine=engine)
    assert (change.transition, change.finding.severity) == (Transition.CHANGED, Severity.CRITICAL)
    (change,) = feed(ledger, Observation("process", "x", {"exe_state": None}, NOW), engine=engine)
    assert (change.transition, change.finding.severity) == (Transition.REPEATED, Severity.CRITICAL)


def room_condition():
    from worlds import c

    return c("exe_state", "is", "ok")


def test_disk_and_back():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD))
    feed(ledger, file("/usr/sbin/\udcff\n\x1b[31m", target="\udc80", flags=("a", "\udcfe"), ports=(1, 2)))
    feed(ledger, listener())
    feed(ledger, listener(status=Status.ABSENT))
    ledger.accept(ledger.open()[0].id, "anna", "why not", NOW)
    ledger.overflow["EG-FILE-001"] = 3
    again = Ledger.from_cbor(ledger.to_cbor())
    assert again.all() == ledger.all()
    assert again.overflow == ledger.overflow
    assert again.to_cbor() == ledger.to_cbor()
    assert again.find(ledger.all()[0].id) == ledger.find(ledger.all()[0].id)
    again.govern(ENGINE, NOW)
    assert steps(feed(again, file(at=NOW + 1))) == [("resolved", "EG-FILE-002")]


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_ledger_or_our_error(data):
    with contextlib.suppress(DecodeError):
        Ledger.from_cbor(data)


def test_a_damaged_ledger_is_our_error():
    ledger = Ledger()
    feed(ledger, file(sha256=BAD))
    good = ledger.to_cbor()
    for at in range(len(good)):
        broken = good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :]
        with contextlib.suppress(DecodeError):
            Ledger.from_cbor(broken)


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["/usr/sbin/sshd", "/usr/sbin/a", "/usr/sbin/b"]),
        st.sampled_from(["good", "bad", "mode", "absent", "unreadable"]),
    ),
    max_size=25,
)


def act(subject, what, at):
    status = {"absent": Status.ABSENT, "unreadable": Status.UNREADABLE}.get(what, Status.PRESENT)
    columns = {"bad": {"sha256": BAD}, "mode": {"mode": 0o777}}.get(what, {})
    return file(subject, status, at, **columns) if status is Status.PRESENT else file(subject, status, at)


@given(ACTS)
@settings(max_examples=150, deadline=None)
def test_whatever_happened_undo_resolves_it(acts):
    ledger = Ledger()
    for number, (subject, what) in enumerate(acts):
        feed(ledger, act(subject, what, NOW + number), NOW + number)
    end = NOW + 1000
    feed(ledger, file(at=end), end)
    for subject in ("/usr/sbin/a", "/usr/sbin/b"):
        feed(ledger, file(subject, Status.ABSENT, end), end)
    assert ledger.open() == []
    assert ledger.suppressed() == []


@given(ACTS, st.integers())
@settings(max_examples=100, deadline=None)
def test_unrelated_subjects_do_not_care_about_order(acts, seed):
    events = [(number, act(subject, what, NOW + number)) for number, (subject, what) in enumerate(acts)]
    shuffled = events[:]
    random.Random(seed).shuffle(shuffled)
    by_subject = {}
    for number, observation in shuffled:  # each subject keeps its own order, the interleaving is random
        by_subject.setdefault(observation.subject, []).append(number)
    order = {s: iter(sorted(numbers)) for s, numbers in by_subject.items()}
    interleaved = [events[next(order[observation.subject])][1] for _, observation in shuffled]
    one, two = Ledger(), Ledger()
    for _, observation in events:
        feed(one, observation)
    for observation in interleaved:
        feed(two, observation)
    assert {f.id: f for f in one.open()} == {f.id: f for f in two.open()}
