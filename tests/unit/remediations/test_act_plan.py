"""When the daemon asks for an act, and the limits that hold it back."""

from __future__ import annotations

import pytest

from edgeguard.errors import RemediationFailed, RemediationRefused
from edgeguard.model import Change, Finding, Mode, Origin, Outcome, Rule, Severity, State, Transition
from edgeguard.remediations import TABLE, ActRequest, Order, World, carry, remediation, undo
from edgeguard.remediations.plan import KINDS, plan

NOW = 1_763_880_000_000


def _change(**changes):
    rule = Rule("r", "EG-FILE-002", "file", Severity.HIGH, "t", mode=Mode.ENFORCE, remediation="restore-file")
    finding = Finding(
        "F-7K2M", "EG-FILE-002", "r", "file", "/x", Severity.HIGH, State.OPEN, "t", 1, 1, 1, Origin.LIVE, {}, {}
    )
    for name, value in changes.items():
        if name in Rule._fields and name in ("mode", "remediation"):
            rule = _with(rule, name, value)
        elif name in Finding._fields:
            finding = _with(finding, name, value)
    return Change(changes.get("transition", Transition.OPENED), finding, changes.get("rule", rule))


def _with(item, name, value):
    return item._replace(**{name: value})


def test_an_open_finding_of_an_enforced_rule_is_acted_on():
    assert plan(_change(), Mode.ENFORCE, 7) == ActRequest("restore-file", "F-7K2M", 7)


@pytest.mark.parametrize(
    "change",
    [
        {"mode": Mode.AUDIT},
        {"remediation": ""},
        {"remediation": "rm -rf"},
        {"remediation": "stop-process"},  # not for files
        {"state": State.SUPPRESSED},
        {"state": State.RESOLVED},
        {"outcome": Outcome.UNKNOWN},
        {"outcome": Outcome.ERROR},
        {"transition": Transition.REPEATED},
        {"transition": Transition.RESOLVED},
        {"origin": Origin.LEARN},
        {"rule": None},
    ],
)
def test_anything_else_is_only_said(change):
    assert plan(_change(**change), Mode.ENFORCE) is None


def test_the_device_switch_wins():
    assert plan(_change(), Mode.AUDIT) is None


def test_every_verb_of_the_table_says_what_the_plan_says():
    assert set(TABLE) == set(KINDS)
    for name in TABLE:
        verb = remediation(name)
        assert (verb.verb, verb.kinds) == (name, KINDS[name])


class Switch:
    """A verb over one value, with a fault where the test wants it."""

    verb = "set-sysctl"
    kinds = ("sysctl",)

    def __init__(self, fault=""):
        self.value = "bad"
        self.fault = fault

    def prepare(self, order, world):
        return {"before": self.value, "want": "good"}

    def apply(self, plan, world):
        if self.fault == "apply":
            raise OSError(5, "Input/output error")
        self.value = "good" if self.fault != "verify" else "odd"
        return "set"

    def verify(self, plan, world):
        return self.value == plan["want"]

    def revert(self, plan, world):
        if self.fault == "revert":
            raise RemediationFailed("stuck")
        self.value = plan["before"]
        return "as before"


@pytest.fixture
def store(tmp_path):
    return undo.UndoStore(str(tmp_path / "undo"))


def _order(subject="net.x", finding="F-7K2M"):
    return Order("set-sysctl", finding, "EG-HOST-001", "sysctl", subject, {}, None)


def _act(switch, store, now=NOW, **order):
    return carry.carry_out(_order(**order), World(), store, now, lambda _verb: switch)


@pytest.mark.parametrize("fault", ["apply", "verify"])
def test_what_does_not_hold_is_put_back(store, fault):
    switch = Switch(fault)
    reply = _act(switch, store)
    assert (reply.state, switch.value) == ("failed", "bad")
    assert store.all()[0].state == undo.FAILED


def test_undo_twice_says_that_there_is_nothing_left(store):
    switch = Switch()
    assert _act(switch, store).ok
    assert carry.take_back("F-7K2M", World(), store, NOW, lambda _verb: switch).ok
    assert carry.take_back("F-7K2M", World(), store, NOW, lambda _verb: switch).state == "refused"


def test_an_undo_that_fails_can_be_tried_again(store):
    switch = Switch("revert")
    _act(switch, store)
    assert carry.take_back("F-7K2M", World(), store, NOW, lambda _verb: switch).state == "failed"
    switch.fault = ""
    assert carry.take_back("F-7K2M", World(), store, NOW, lambda _verb: switch).ok


def test_one_subject_is_not_fought_over_for_ever(store):
    for number in range(undo.PER_SUBJECT_HOUR):
        assert _act(Switch(), store, NOW + number).ok
    assert "a person must look" in _act(Switch(), store, NOW + 100).detail
    assert _act(Switch(), store, NOW + 100, subject="net.y").ok
    assert _act(Switch(), store, NOW + undo.HOUR_MS + 100).ok


def test_a_verb_is_not_used_on_everything_at_once(store):
    for number in range(undo.PER_VERB_HOUR):
        assert _act(Switch(), store, NOW + number, subject=f"net.{number}").ok
    assert _act(Switch(), store, NOW + 99, subject="net.other").state == "refused"


def test_a_clock_that_was_set_back_loosens_no_limit(store):
    for number in range(undo.PER_SUBJECT_HOUR):
        assert _act(Switch(), store, NOW + number).ok
    assert _act(Switch(), store, NOW - 10 * undo.HOUR_MS).state == "refused"


def test_a_wrong_kind_is_refused(store):
    order = Order("set-sysctl", "F-7K2M", "EG-FILE-002", "file", "/x", {}, None)
    assert carry.carry_out(order, World(), store, NOW, lambda _verb: Switch()).state == "refused"


def test_a_damaged_record_is_left_alone_and_not_believed(store, tmp_path):
    assert _act(Switch(), store).ok
    directory = tmp_path / "undo"
    for number, text in enumerate([b"", b"{", b"[]", b'{"v":1}', b'{"v":2}', b"\xff", b'{"v":1,"id":3}']):
        (directory / f"odd{number}.json").write_bytes(text)
    assert len(store.all()) == 1


def test_old_records_go_but_never_what_a_crash_left(store):
    for number in range(5):
        store.write(undo.Record(f"F-{number}", "F-0000", "v", "s", number, undo.DONE, {}))
    store.write(undo.Record("F-crash", "F-0000", "v", "s", -1, undo.INTENDED, {}))
    store.trim(keep=3)
    assert [record.id for record in store.all()] == ["F-crash", "F-3", "F-4"]


def test_a_record_beyond_the_bound_is_refused_before_anything_is_done(store):
    with pytest.raises(RemediationRefused):
        store.write(undo.Record("F-1", "F-1", "v", "s", 1, undo.INTENDED, {"x": "y" * undo.RECORD_MAX}))
    assert store.all() == []
