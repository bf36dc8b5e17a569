"""Sensor `health`: reports, codes that give way to one another, failures that fade, the clock."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import edgeguard
from edgeguard.model import Observation
from edgeguard.sensors import Context, Rung, health
from edgeguard.sensors.health import CASES, HOUR_S, SUBJECTS_MAX, Health, Reason


class Clock:
    def __init__(self) -> None:
        self.moved = 0.0

    def step(self) -> float:
        moved, self.moved = self.moved, 0.0
        return moved

    def close(self) -> None:
        pass


@pytest.fixture
def sensor() -> Health:
    return Health(Context())


def told(observations: list[Observation]) -> list[tuple[str, object, object, object]]:
    return [(each.subject, each.columns["code"], each.columns["ok"], each.columns["count"]) for each in observations]


def test_every_reason_is_decided_and_has_a_code() -> None:
    codes = tomllib.loads((Path(edgeguard.__file__).parent / "codes.toml").read_text())
    assert set(CASES) == set(Reason)
    for reason, case in CASES.items():
        assert case.action
        assert reason is Reason.FINE or case.code in codes


def test_report_repeat_clear(sensor: Health) -> None:
    assert not sensor.pending
    sensor.report(Reason.SPOOL_FULL, "spool", "0 of 32 MB free")
    assert sensor.pending
    assert told(list(sensor.ready(1))) == [("spool", "EG-HLTH-004", False, 1)]
    assert not sensor.pending
    sensor.report(Reason.SPOOL_FULL, "spool", "0 of 32 MB free")
    assert told(list(sensor.observe(2))) == [("spool", "EG-HLTH-004", False, 2)]
    assert sensor.problems() == ["spool: 0 of 32 MB free"]
    sensor.clear("spool")
    [seen] = sensor.ready(3)
    assert (seen.columns["ok"], seen.columns["code"], seen.columns["reason"]) == (True, "EG-HLTH-004", "fine")
    assert sensor.counts[Reason.SPOOL_FULL] == 2
    assert sensor.problems() == []
    sensor.clear("spool")
    sensor.clear("never heard of")
    assert list(sensor.ready(4)) == []


def test_another_code_ends_the_first(sensor: Health) -> None:
    sensor.report(Reason.BASELINE_REFUSED, "baseline", "wrong signature", code="EG-BASE-001")
    list(sensor.ready(1))
    sensor.report(Reason.BASELINE_REFUSED, "baseline", "older", code="EG-BASE-002")
    assert [entry[:3] for entry in told(list(sensor.ready(2)))] == [
        ("baseline", "EG-BASE-001", True),
        ("baseline", "EG-BASE-002", False),
    ]


def test_what_happens_at_one_moment_fades(sensor: Health) -> None:
    now = 1_000_000_000
    sensor.report(Reason.EVENTS_LOST, "events", "files: queue overflow", now=now)
    sensor.report(Reason.UPLINK_FAILING, "uplink", "no route", now=now)
    assert [entry[2] for entry in told(list(sensor.observe(now + HOUR_S * 1000)))] == [False, False]
    assert [entry[2] for entry in told(list(sensor.observe(now + HOUR_S * 1000 + 1)))] == [True, False]


def test_a_lower_rung_is_no_failure_and_none_is_one(sensor: Health) -> None:
    sensor.rung("files", Rung("fanotify", proven=True))
    sensor.rung("processes", Rung("polling", proven=True, blind=("short-lived programs go unseen",)))
    sensor.rung("usb", None, "broken")
    assert [entry[:3] for entry in told(list(sensor.ready(1)))] == [
        ("sensor files", "EG-HLTH-002", True),
        ("sensor processes", "EG-HLTH-002", True),
        ("sensor usb", "EG-HLTH-002", False),
    ]
    assert sensor.problems() == ["sensor usb: broken"]
    sensor.rung("usb", Rung("udev", proven=True))
    assert told(list(sensor.ready(2)))[0][2] is True


def test_clock_set_back_is_a_failure(sensor: Health) -> None:
    clock = Clock()
    sensor._clock = clock  # type: ignore[assignment]
    clock.moved = -7200.0
    [seen] = sensor.ready(1)
    assert seen.subject == "clock"
    assert (seen.columns["ok"], seen.columns["code"]) == (False, "EG-HLTH-003")
    assert "7200.0 s back" in str(seen.columns["detail"])


def test_the_first_synchronisation_is_none(sensor: Health) -> None:
    clock = Clock()
    sensor._clock = clock  # type: ignore[assignment]
    clock.moved = 0.5
    assert list(sensor.ready(1)) == []
    clock.moved = 86_400.0
    sensor._synchronised = False
    assert [each.columns["ok"] for each in sensor.ready(2)] == [True]
    clock.moved = 86_400.0
    sensor._synchronised = True
    assert [each.columns["ok"] for each in sensor.ready(3)] == [False]


def test_subjects_are_bounded_and_failures_stay(sensor: Health) -> None:
    sensor.report(Reason.SPOOL_FULL, "spool", "full")
    for number in range(SUBJECTS_MAX * 2):
        sensor.rung(str(number), Rung("polling", proven=True))
    seen = list(sensor.observe(1))
    assert len(seen) == SUBJECTS_MAX
    assert "spool" in {each.subject for each in seen}
    assert len(list(sensor.ready(1))) == 0


def test_starts_here() -> None:
    sensor = Health(Context())
    rung = sensor.start()
    assert rung.name in health.Health.ladder
    assert list(sensor.ready(1)) == []
    sensor.close()
    assert sensor.fileno() is None
