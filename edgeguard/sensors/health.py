"""Sensor `health`: every way in which EdgeGuard itself can fail, each with a decided action, a counter and a code.

Whoever notices a failure calls `report`; whoever sees it gone calls `clear`. This sensor looks itself only at the
clock. What happens at one moment (events lost, the clock set) is a failure for `lasting_s` and then fades; what is a
state (spool full, uplink down) stays until it is cleared.
A sensor on a lower rung is no failure: `ok` stays true and `detail` says what is not seen. One without any rung is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from edgeguard.errors import Unavailable
from edgeguard.linux import adjtimex, timerfd
from edgeguard.model import Columns, Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung

SUBJECTS_MAX = 256  # there are some thirty; beyond, those that are well make room
DETAIL_MAX = 512  # characters of one detail
HOUR_S = 3600
STEP_MIN_S = 2.0  # a smaller step is what time daemons do

_KIND: Mapping[str, Column] = {
    "ok": Column("bool", "works as it should"),
    "reason": Column("str", "what failed, a name from the table of reasons; fine when nothing did"),
    "detail": Column("str", "in plain words"),
    "code": Column("str", "finding code of the failure"),
    "count": Column("int", "how often this happened since the start"),
    "action": Column("str", "what EdgeGuard does about it by itself"),
}


class Reason(StrEnum):
    """The closed set of failures."""

    FINE = "fine"
    EVENTS_LOST = "events-lost"
    SENSOR_BLIND = "sensor-blind"
    SENSOR_REDUCED = "sensor-reduced"
    SENSOR_FAILED = "sensor-failed"
    CLOCK_STEP = "clock-step"
    SPOOL_FULL = "spool-full"
    SPOOL_ERROR = "spool-error"
    SEGMENT_SET_ASIDE = "segment-set-aside"
    BASELINE_REFUSED = "baseline-refused"
    BASELINE_EXPIRED = "baseline-expired"
    POLICY_WRONG = "policy-wrong"
    OWN_FILES = "own-files"
    HELPER_FAILED = "helper-failed"
    HELPER_TIMEOUT = "helper-timeout"
    UPLINK_FAILING = "uplink-failing"
    NOT_RUNNING = "not-running"
    MEMORY_OVER_BUDGET = "memory-over-budget"
    LEDGER_FULL = "ledger-full"
    DEADLINE_MISSED = "deadline-missed"
    OTHER_IMAGE = "other-image"
    RECORDS_LET_GO = "records-let-go"


class Case(NamedTuple):
    """What is decided about a reason."""

    code: str
    action: str
    ok: bool = False  # told, but no failure
    lasting_s: int = 0  # 0: until cleared


CASES: Mapping[Reason, Case] = {
    Reason.FINE: Case("", "nothing to do", ok=True),
    Reason.EVENTS_LOST: Case(
        "EG-HLTH-001", "everything that the lost events may concern is looked at again", False, HOUR_S
    ),
    Reason.SENSOR_BLIND: Case("EG-HLTH-002", "the other sensors go on; this one is started again with the daemon"),
    Reason.SENSOR_REDUCED: Case("EG-HLTH-002", "the next mechanism of the ladder is used", ok=True),
    Reason.SENSOR_FAILED: Case(
        "EG-HLTH-002", "the other sensors go on; this one looks again at its next turn", False, HOUR_S
    ),
    Reason.CLOCK_STEP: Case(
        "EG-HLTH-003", "the step is recorded; intervals follow the clock that cannot be set", False, HOUR_S
    ),
    Reason.SPOOL_FULL: Case("EG-HLTH-004", "records wait in memory and the least important are dropped, counted"),
    Reason.SPOOL_ERROR: Case("EG-HLTH-004", "records wait and are written again"),
    Reason.SEGMENT_SET_ASIDE: Case("EG-HLTH-006", "the segment lies in quarantine and is not sent"),
    Reason.BASELINE_REFUSED: Case("EG-BASE-006", "the baseline that stands stays in force"),
    Reason.BASELINE_EXPIRED: Case("EG-BASE-004", "the baseline that stands stays in force"),
    Reason.POLICY_WRONG: Case("EG-POL-001", "the policy that stands stays in force"),
    Reason.OWN_FILES: Case("EG-HLTH-005", "told; nothing is put back by itself"),
    Reason.HELPER_FAILED: Case("EG-HLTH-007", "the helper is started again later, each time later"),
    Reason.HELPER_TIMEOUT: Case("EG-HLTH-007", "the helper was ended and is started again later"),
    Reason.UPLINK_FAILING: Case("EG-HLTH-008", "records are kept and sent later"),
    Reason.NOT_RUNNING: Case("EG-HLTH-009", "what changed meanwhile is looked for and told as such", False, HOUR_S),
    Reason.MEMORY_OVER_BUDGET: Case("EG-HLTH-007", "caches are emptied"),
    Reason.LEDGER_FULL: Case("EG-HLTH-007", "further findings are counted by code, not kept"),
    Reason.RECORDS_LET_GO: Case("EG-HLTH-010", "verbose records go first, findings last; each loss is signed and told"),
    Reason.DEADLINE_MISSED: Case("EG-HLTH-001", "told; the watchdog ends a daemon that stands still", False, HOUR_S),
    Reason.OTHER_IMAGE: Case("EG-BASE-008", "the baseline of the image that runs is in force, where one is valid"),
}


class _Entry(NamedTuple):
    reason: Reason
    detail: str
    ok: bool
    code: str
    at: int  # ms of the last report


class Health:
    name = "health"
    kinds: Mapping[str, Mapping[str, Column]] = {"health": _KIND}
    ladder = ("timerfd", "polling")
    interval_s = 600  # point failures fade
    triggers: tuple[str, ...] = ()

    def __init__(self, context: Context) -> None:
        del context  # only the clock is looked at, and that of this machine
        self.counts: Counter[Reason] = Counter()
        self._entries: dict[str, _Entry] = {}
        self._times: Counter[tuple[str, Reason]] = Counter()
        self._ended: dict[tuple[str, str], None] = {}  # subject and code of failures that gave way to another
        self._pending: dict[str, None] = {}  # subjects to tell at the next `ready`, in order
        self._clock: timerfd.ClockSteps | None = None
        self._synchronised = False
        self._last = 0

    def start(self) -> Rung:
        self._synchronised = adjtimex.synchronised()
        try:
            self._clock = timerfd.ClockSteps()
        except (Unavailable, OSError) as error:
            return Rung(
                "polling", proven=True, blind=("setting the clock is not noticed",), tried=(("timerfd", str(error)),)
            )
        return Rung("timerfd", proven=True)

    def fileno(self) -> int | None:
        return self._clock.fileno() if self._clock is not None else None

    @property
    def pending(self) -> bool:
        """Is there something that `ready` would tell? Ask after every `report`, `clear` and `rung`."""
        return bool(self._pending)

    def report(
        self, reason: Reason, subject: str, detail: str, ok: bool | None = None, code: str | None = None, now: int = 0
    ) -> None:
        """Something failed. `subject` as "sensor files", "spool", "baseline"; `code` where the case has several.

        `now` in ms, for point failures; without it, the time of the last look counts.
        """
        case = CASES[reason]
        self.counts[reason] += 1
        self._make_room(subject)
        self._times[subject, reason] += 1
        well = case.ok if ok is None else ok
        entry = _Entry(reason, detail[:DETAIL_MAX], well, code or case.code, now or self._last)
        before = self._entries.get(subject)
        if before is not None and not before.ok and before.code != entry.code:
            # Another rule judges the new code; the one of the old code must hear that its failure is over.
            self._ended[subject, before.code] = None
        self._ended.pop((subject, entry.code), None)
        self._entries[subject] = entry
        self._pending[subject] = None

    def clear(self, subject: str) -> None:
        """It works again. Nothing happens where nothing had failed."""
        entry = self._entries.get(subject)
        if entry is not None and entry.reason is not Reason.FINE:
            # The code stays: the rule that told the failure also tells that it is gone.
            self._entries[subject] = entry._replace(reason=Reason.FINE, detail="", ok=True)
            self._pending[subject] = None

    def rung(self, sensor: str, rung: Rung | None, error: str = "") -> None:
        """Where a sensor stands after its start; None: it could not be started at all."""
        subject = f"sensor {sensor}"
        if rung is None:
            self.report(Reason.SENSOR_BLIND, subject, error or "no mechanism works here")
        elif rung.blind:
            self.report(Reason.SENSOR_REDUCED, subject, f"{rung.name}: {'; '.join(rung.blind)}")
        else:
            self._make_room(subject)
            detail = rung.name if rung.proven else f"{rung.name} (not proven by an event of our own)"
            self._entries[subject] = _Entry(Reason.FINE, detail, True, "EG-HLTH-002", self._last)
            self._pending[subject] = None

    def problems(self) -> list[str]:
        """One line for each failure that stands, for the status document."""
        return [f"{subject}: {entry.detail}" for subject, entry in self._entries.items() if not entry.ok]

    def clock_synchronised(self) -> bool:
        return adjtimex.synchronised()

    def ready(self, now: int) -> Iterator[Observation]:
        self._last = max(self._last, now)
        self._check_clock(now)
        ended, self._ended = self._ended, {}
        for subject, code in ended:
            over = _Entry(Reason.FINE, "", True, code, now)
            yield Observation("health", subject, _columns(over, 0), now, Status.PRESENT, Origin.LIVE)
        pending, self._pending = self._pending, {}
        for subject in pending:
            if subject in self._entries:
                yield self._observation(subject, now, Origin.LIVE)

    def observe(self, now: int) -> Iterable[Observation]:
        self._last = max(self._last, now)
        self._check_clock(now)
        self._synchronised = adjtimex.synchronised()
        for subject, entry in list(self._entries.items()):
            lasting = CASES[entry.reason].lasting_s
            if not entry.ok and lasting and abs(now - entry.at) > lasting * 1000:
                self.clear(subject)
        self._pending.clear()
        return [self._observation(subject, now, Origin.SWEEP) for subject in self._entries]

    def close(self) -> None:
        if self._clock is not None:
            self._clock.close()
            self._clock = None

    def _check_clock(self, now: int) -> None:
        step = self._clock.step() if self._clock is not None else 0.0
        if abs(step) < STEP_MIN_S:
            return
        # A device without a battery-backed clock starts in the past; its first synchronisation is no incident.
        first = step > 0 and not self._synchronised
        self._synchronised = adjtimex.synchronised()
        detail = f"the clock was set {abs(step):.1f} s {'forward' if step > 0 else 'back'}"
        detail += " (it had not been synchronised before)" if first else ""
        self.report(Reason.CLOCK_STEP, "clock", detail, ok=first, now=now)

    def _make_room(self, subject: str) -> None:
        if subject in self._entries or len(self._entries) < SUBJECTS_MAX:
            return
        victim = next((name for name, entry in self._entries.items() if entry.ok), next(iter(self._entries)))
        reason = self._entries.pop(victim).reason
        self._times.pop((victim, reason), None)
        self._pending.pop(victim, None)

    def _observation(self, subject: str, now: int, origin: Origin) -> Observation:
        entry = self._entries[subject]
        columns = _columns(entry, self._times[subject, entry.reason])
        return Observation("health", subject, columns, now, Status.PRESENT, origin)


def _columns(entry: _Entry, count: int) -> Columns:
    return {
        "ok": entry.ok,
        "reason": entry.reason.value,
        "detail": entry.detail,
        "code": entry.code,
        "count": count,
        "action": CASES[entry.reason].action,
    }
