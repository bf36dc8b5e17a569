"""Which notices make a message now: critical at once, the rest in groups, in quiet hours only what breaks them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.collector import alerts
from edgeguard.collector.alerts import GATHER_MS, URGENT_MAX, Alert, Notice, due, is_quiet, message
from edgeguard.collector.config import Alerts
from edgeguard.model import Severity

NOW = 1_795_416_177_140
POLICY = Alerts(group_s=60)
CRITICAL, HIGH = int(Severity.CRITICAL), int(Severity.HIGH)


def notice(severity=HIGH, age=GATHER_MS, event="opened", number=1):
    alert = Alert(f"k{number}", "finding", bytes(16), "pump-07", "EG-FILE-002", f"/{number}", "", severity, NOW)
    return Notice(number, event, severity, alerts.item(alert, event), NOW - age)


def told(*notices, quiet=False, last=0, urgent=0):
    return due(notices, POLICY, NOW, quiet=quiet, last=last, urgent_sent=urgent)


def test_the_first_one_only_waits_for_company():
    assert told(notice(age=GATHER_MS - 1)) == []
    assert told(notice()) == [notice()]


def test_what_is_not_critical_waits_for_its_group():
    assert told(notice(), last=NOW - 59_999) == []
    both = [notice(age=40_000), notice(age=0, number=2)]
    assert told(*both, last=NOW - 60_000) == both


def test_critical_does_not_wait_and_takes_the_others_along():
    both = [notice(), notice(CRITICAL, number=2)]
    assert told(*both, last=NOW - 1) == both
    assert told(notice(CRITICAL, age=GATHER_MS - 1), notice(), last=NOW - 1) == []


def test_a_storm_of_critical_ones_is_grouped_in_the_end():
    assert told(notice(CRITICAL), last=NOW - 1, urgent=URGENT_MAX - 1)
    assert not told(notice(CRITICAL), last=NOW - 1, urgent=URGENT_MAX)
    assert told(notice(CRITICAL), last=NOW - 60_000, urgent=URGENT_MAX)


def test_in_quiet_hours_only_what_breaks_them():
    assert told(notice(), quiet=True) == []
    assert told(notice(CRITICAL, number=2), notice(), quiet=True) == [notice(CRITICAL, number=2)]
    assert told(notice(CRITICAL, event="resolved"), quiet=True) == []
    assert told(notice(CRITICAL, event="resolved"), last=NOW - 1) == []  # good news is not urgent


@pytest.mark.parametrize(
    ("minute", "hours", "quiet"),
    [
        (0, (), False),
        (22 * 60 - 1, ((1320, 360),), False),
        (22 * 60, ((1320, 360),), True),
        (0, ((1320, 360),), True),
        (359, ((1320, 360),), True),
        (360, ((1320, 360),), False),
        (720, ((1320, 360), (700, 730)), True),
    ],
)
def test_quiet_hours_go_over_midnight(minute, hours, quiet):
    assert is_quiet(minute, hours) is quiet


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_a_span_and_its_rest_are_the_day(minute, begin, end):
    if begin != end:
        assert is_quiet(minute, ((begin, end),)) is not is_quiet(minute, ((end, begin),))


def test_the_clock_of_a_zone():
    summer = int(datetime(2026, 7, 1, 20, 5, tzinfo=UTC).timestamp() * 1000)
    winter = int(datetime(2026, 12, 1, 20, 5, tzinfo=UTC).timestamp() * 1000)
    berlin = alerts.clock("Europe/Berlin")
    assert (berlin(summer), berlin(winter), alerts.clock("UTC")(summer)) == (22 * 60 + 5, 21 * 60 + 5, 20 * 60 + 5)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(-5, 100_000), st.booleans()), max_size=20),
    st.booleans(),
    st.integers(0, 100_000),
    st.integers(0, 40),
)
def test_nothing_is_told_that_was_not_waiting_and_nothing_twice(rows, quiet, since, urgent):
    waiting = [
        notice(severity, age, "resolved" if over else "opened", number)
        for number, (severity, age, over) in enumerate(rows)
    ]
    found = told(*waiting, quiet=quiet, last=NOW - since, urgent=urgent)
    numbers = [item.id for item in found]
    assert len(set(numbers)) == len(numbers)
    assert all(item in waiting for item in found)
    if quiet:
        assert all(item.severity >= CRITICAL and item.event != "resolved" for item in found)
    elif found:
        assert found == waiting  # a message takes everything along


def test_a_message_has_the_worst_first_and_counts_the_rest():
    many = [notice(HIGH, number=n) for n in range(alerts.ITEMS_MAX + 5)]
    body = message(
        "id1", [notice(event="resolved", severity=CRITICAL, number=998), *many, notice(CRITICAL, number=999)], NOW
    )
    assert body["items"][0]["subject"] == "/999"
    assert len(body["items"]) == alerts.ITEMS_MAX
    assert body["more"] == 7
    assert body["counts"] == {"critical": 1, "high": 105, "resolved": 1}
    assert (body["v"], body["id"], body["time"]) == (1, "id1", "2026-11-23T06:42:57.140Z")
