"""The life of findings: opened, changed, repeated, suppressed, resolved. Pure: results and `now` in, changes out.

A finding is known by its key (rule, kind, subject), which never changes; its short id is made from the key, so the
same deviation has the same id when it comes back. Suppression is not a way to disappear: a waiver covers a code and
a glob until it expires, an acceptance covers exactly what was observed when a person accepted it.
What the ledger looks like on disk is in `archive`; nothing here decides whether a rule holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from edgeguard.codec import sha
from edgeguard.errors import ControlError
from edgeguard.evaluate.engine import STATUS_WORDS, Engine, Waivers
from edgeguard.model import (
    COMPARED,
    NOBODY,
    Actor,
    Change,
    Columns,
    Finding,
    Observation,
    Origin,
    Outcome,
    Result,
    Rule,
    Severity,
    State,
    Status,
    Transition,
    Value,
)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford: no I L O U, can be read aloud
ID_LENGTH = 4  # characters; a million ids for some thousand findings, more on a collision
FINDINGS_MAX = 10_000  # open and suppressed ones; some 15 MB, the largest the daemon may afford for a while
RESOLVED_MAX = 200  # newest closed ones kept for `findings --all`
RESOLVED_MS = 30 * 86_400_000  # and not longer than a month
ACCEPTED_MAX = 1_000  # acceptances; a person types them
BURST_MS = 2_000  # events of one act (write, chmod, close) come this close together

Key = tuple[str, str, str]
_DEVIATION = frozenset({Outcome.FAIL, Outcome.UNKNOWN, Outcome.ERROR})
_GONE = frozenset({Outcome.PASS, Outcome.NOTAPPLICABLE})
_STATUS_OF = {word: status for status, word in STATUS_WORDS.items()}


class Acceptance(NamedTuple):
    """A person's word that this deviation, as it was observed, is right."""

    fingerprint: bytes
    owner: str
    reason: str
    until: int | None  # ms; None: until it is retracted or something else is observed
    at: int


class Ledger:
    """Findings by key. `govern` gives it the rules and waivers in force; `apply` feeds it."""

    def __init__(self, findings_max: int = FINDINGS_MAX) -> None:
        self._max = findings_max
        self._live: dict[Key, Finding] = {}
        self._resolved: dict[Key, Finding] = {}  # oldest first
        self._ids: dict[str, Key] = {}
        self._severity: dict[Severity, dict[Key, None]] = {severity: {} for severity in Severity}
        self._accepted: dict[Key, Acceptance] = {}
        self._waivers = Waivers()
        self._rules: Mapping[str, Rule] = {}
        self.overflow: dict[str, int] = {}
        """Findings that found no room, by code, since this ledger began."""

    # -- feeding

    def govern(self, engine: Engine, now: int) -> list[Change]:
        """Come under these rules, waivers and reference values.

        Findings of rules that are gone end. All others are judged again by what was last observed, so that an
        accepted baseline closes its findings at once.
        """
        self._rules = engine.rules
        self._waivers = Waivers(engine.waivers)
        changes: list[Change] = []
        for key, finding in list(self._live.items()):
            if key[0] not in self._rules:
                changes.append(self._resolve(key, finding, None, now))
                continue
            for result in engine.evaluate(_last_seen(finding), now):
                if result.rule.id == key[0]:
                    changes += self._rejudge(key, finding, result, now)
        return changes

    def apply(self, results: Iterable[Result], now: int) -> list[Change]:
        """What these results do to the findings, in order. A passing result without a finding costs nothing."""
        changes: list[Change] = []
        for result in results:
            rule, observation, outcome = result.rule, result.observation, result.outcome
            key = (rule.id, observation.kind, observation.subject)
            if outcome in _DEVIATION:
                if change := self._deviate(key, result, now):
                    changes.append(change)
            elif outcome in _GONE and (finding := self._live.get(key)):
                changes.append(self._resolve(key, finding, rule, max(now, observation.at)))
        return changes

    def tick(self, now: int) -> list[Change]:
        """What time alone does: waivers and acceptances end, old resolved findings are forgotten."""
        changes = []
        for key, finding in list(self._live.items()):
            if change := self._cover(key, finding, now):
                changes.append(change)
        self._forget(now)
        return changes

    # -- asking

    def open(self) -> list[Finding]:
        """Open findings, worst first, then newest first."""
        return _sorted(f for f in self._live.values() if f.state is State.OPEN)

    def suppressed(self) -> list[Finding]:
        return _sorted(f for f in self._live.values() if f.state is State.SUPPRESSED)

    def all(self) -> list[Finding]:
        """Open, then suppressed, then resolved (newest first)."""
        return [*self.open(), *self.suppressed(), *reversed(self._resolved.values())]

    def find(self, text: str) -> list[Finding]:
        """Findings by id or its beginning, as people type it: `f-7k2m`, `7K2`, O for 0, I or L for 1."""
        wanted = text.strip().upper().removeprefix("F-").translate(str.maketrans("OIL", "011"))
        if not wanted:
            return []
        if key := self._ids.get("F-" + wanted):
            return [self._at(key)]
        return _sorted(self._at(key) for id_, key in self._ids.items() if id_.startswith("F-" + wanted))

    def of_subject(self, kind: str, subject: str) -> list[Finding]:
        """Live findings about one subject."""
        return _sorted(f for key, f in self._live.items() if key[1:] == (kind, subject))

    def closed_since(self, since: int) -> int:
        return sum(1 for finding in self._resolved.values() if (finding.resolved_at or 0) >= since)

    def __len__(self) -> int:
        return len(self._live)

    # -- a person's word, and what was done

    def accept(self, text: str, owner: str, reason: str, now: int, until: int | None = None) -> Change:
        """Suppress one finding as it is now. It opens again when something else is observed, or at `until`.

        Raises ControlError: NoSuchFinding, Ambiguous, InvalidParameter (no reason, an end in the past), Full.
        """
        key, finding = self._only(text)
        if not reason.strip():
            raise ControlError("InvalidParameter", "a reason is needed: it is recorded with your name")
        if until is not None and until <= now:
            raise ControlError("InvalidParameter", "the end of the acceptance is in the past")
        if key not in self._accepted and len(self._accepted) >= ACCEPTED_MAX:
            raise ControlError("Full", f"{ACCEPTED_MAX} acceptances stand already; sign a new baseline instead")
        self._accepted[key] = Acceptance(fingerprint(finding), owner, reason.strip(), until, now)
        change = self._cover(key, finding, now)
        return change or Change(Transition.SUPPRESSED, self._live[key], self._rules.get(key[0]))

    def retract(self, text: str, now: int) -> Change | None:
        """Take an acceptance back. None: there was none, or a waiver still covers the finding."""
        key, finding = self._only(text)
        if self._accepted.pop(key, None) is None:
            return None
        return self._cover(key, finding, now)

    def is_accepted(self, id_: str) -> bool:
        """Does a person's word stand for this finding, open or not?"""
        return self._ids.get(id_) in self._accepted

    def withdraw(self, id_: str) -> None:
        """Forget an acceptance whose finding has ended because a baseline took it in: it is to come back as new."""
        if key := self._ids.get(id_):
            self._accepted.pop(key, None)

    def annotate(self, id_: str, remediation: str) -> Finding | None:
        """Note what was done about a finding ("restore: done"); None if it is not there any more."""
        key = self._ids.get(id_)
        if key is None:
            return None
        finding = self._at(key)._replace(remediation=remediation)
        (self._live if key in self._live else self._resolved)[key] = finding
        return finding

    # -- disk

    def to_cbor(self) -> bytes:
        """Everything, for an atomic replacement of ledger.cbor."""
        from edgeguard.evaluate.archive import pack

        return pack([*self._live.items(), *self._resolved.items()], self._accepted, self.overflow)

    @classmethod
    def from_cbor(cls, data: bytes, findings_max: int = FINDINGS_MAX) -> Ledger:
        """The ledger again. Raises DecodeError. Call `govern` before anything else."""
        from edgeguard.evaluate.archive import unpack

        ledger = cls(findings_max)
        findings, accepted, overflow = unpack(data)
        for key, finding in findings:
            if finding.state is State.RESOLVED:
                ledger._resolved[key] = finding
            else:
                ledger._put(key, finding)
            ledger._ids[finding.id] = key
        ledger._accepted.update(accepted)
        ledger.overflow.update(overflow)
        return ledger

    # -- life

    def _deviate(self, key: Key, result: Result, now: int) -> Change | None:
        finding = self._live.get(key)
        if finding is None:
            if len(self._live) >= self._max and not self._make_room(result.rule):
                return None
            return self._open(key, result, now)
        if finding.outcome is Outcome.FAIL and result.outcome is not Outcome.FAIL:
            return self._repeat(key, finding, result)  # "cannot tell any more" does not weaken what was seen
        return self._again(key, finding, result, now)

    def _open(self, key: Key, result: Result, now: int) -> Change:
        rule, observation = result.rule, result.observation
        before = self._resolved.pop(key, None)
        finding = Finding(
            id=before.id if before else self._new_id(key),
            code=rule.code,
            rule=rule.id,
            kind=observation.kind,
            subject=observation.subject,
            severity=_severity(result),
            state=State.OPEN,
            title=rule.title,
            first_seen=observation.at,
            last_seen=observation.at,
            count=(before.count if before else 0) + 1,
            origin=observation.origin,
            expected=result.expected,
            observed=result.observed,
            actor=observation.actor,
            outcome=result.outcome,
            note=_note(result),
            fix=rule.fix,
            details=_details(observation),
        )
        self._ids[finding.id] = key
        self._put(key, finding)
        covered = self._cover(key, finding, now)
        return covered or Change(Transition.OPENED, finding, rule)

    def _again(self, key: Key, finding: Finding, result: Result, now: int) -> Change:
        rule, observation = result.rule, result.observation
        severity = _severity(result)
        same = (
            dict(finding.observed) == dict(result.observed)
            and dict(finding.expected) == dict(result.expected)
            and (finding.severity, finding.outcome, finding.code) == (severity, result.outcome, rule.code)
        )
        actor = _actor(finding, observation, same)
        if same and actor == finding.actor:
            return self._repeat(key, finding, result)
        seen_live = same and observation.origin is Origin.LIVE
        changed = finding._replace(
            code=rule.code,
            severity=severity,
            title=rule.title,
            last_seen=max(finding.last_seen, observation.at),
            count=finding.count + 1,
            origin=finding.origin if same and not seen_live else observation.origin,
            expected=result.expected,
            observed=result.observed,
            actor=actor,
            outcome=result.outcome,
            note=_note(result),
            fix=rule.fix,
            remediation=finding.remediation if same else "",
            details=_details(observation),
        )
        self._put(key, changed)
        return self._cover(key, changed, now) or Change(Transition.CHANGED, changed, rule)

    def _repeat(self, key: Key, finding: Finding, result: Result) -> Change:
        observation = result.observation
        details = _details(observation) if result.outcome is finding.outcome else finding.details
        last_seen = max(finding.last_seen, observation.at)
        self._live[key] = again = finding._replace(last_seen=last_seen, count=finding.count + 1, details=details)
        return Change(Transition.REPEATED, again, result.rule)

    def _rejudge(self, key: Key, finding: Finding, result: Result, now: int) -> list[Change]:
        """The same observation under other rules or reference values: nothing new was seen, so nothing is counted."""
        if result.outcome in _GONE:
            return [self._resolve(key, finding, result.rule, now)]
        change = None
        if result.outcome in _DEVIATION:
            if dict(result.expected) != dict(finding.expected):
                result = _without_comparison(result)
            change = self._again(key, finding, result, now)
            self._live[key] = standing = self._live[key]._replace(count=finding.count)
            change = None if change.transition is Transition.REPEATED else change._replace(finding=standing)
        change = change or self._cover(key, self._live[key], now)
        return [change] if change else []

    def _resolve(self, key: Key, finding: Finding, rule: Rule | None, now: int) -> Change:
        del self._live[key]
        del self._severity[finding.severity][key]
        ended = finding._replace(state=State.RESOLVED, resolved_at=now, waiver="")
        self._resolved[key] = ended
        self._forget(now)
        return Change(Transition.RESOLVED, ended, rule)

    def _cover(self, key: Key, finding: Finding, now: int) -> Change | None:
        """Bring the state in line with what covers the finding now; None if it is so already."""
        waiver = self._covering(key, finding, now)
        state = State.SUPPRESSED if waiver else State.OPEN
        if finding.state is state and finding.waiver == waiver:
            return None
        self._live[key] = changed = finding._replace(state=state, waiver=waiver)
        if finding.state is state:
            return None  # another waiver took over
        transition = Transition.SUPPRESSED if waiver else Transition.OPENED
        return Change(transition, changed, self._rules.get(key[0]))

    def _covering(self, key: Key, finding: Finding, now: int) -> str:
        if waiver := self._waivers.covering(finding.code, finding.subject, now):
            return f"{waiver.reason} ({waiver.owner}, until {_date(waiver.expires)})"
        accepted = self._accepted.get(key)
        if accepted is None or accepted.fingerprint != fingerprint(finding):
            return ""
        if accepted.until is None:
            return f"{accepted.reason} ({accepted.owner}, accepted)"
        if now < accepted.until:
            return f"{accepted.reason} ({accepted.owner}, until {_date(accepted.until)})"
        return ""

    # -- bookkeeping

    def _put(self, key: Key, finding: Finding) -> None:
        before = self._live.get(key)
        if before is not None and before.severity is not finding.severity:
            del self._severity[before.severity][key]
        self._live[key] = finding
        self._severity[finding.severity][key] = None

    def _make_room(self, rule: Rule) -> bool:
        """A full ledger gives up its newest, mildest finding for a worse one; the loser is counted, never silent."""
        for severity in Severity:
            if severity >= rule.severity:
                break
            if keys := self._severity[severity]:
                key, _ = keys.popitem()
                loser = self._live.pop(key)
                del self._ids[loser.id]
                self.overflow[loser.code] = self.overflow.get(loser.code, 0) + 1
                return True
        self.overflow[rule.code] = self.overflow.get(rule.code, 0) + 1
        return False

    def _forget(self, now: int) -> None:
        while self._resolved:
            key, oldest = next(iter(self._resolved.items()))
            if len(self._resolved) <= RESOLVED_MAX and now - (oldest.resolved_at or 0) <= RESOLVED_MS:
                break
            del self._resolved[key]
            self._ids.pop(oldest.id, None)

    def _new_id(self, key: Key) -> str:
        digits = _digits(key)
        for length in range(ID_LENGTH, len(digits) + 1):
            if (name := "F-" + digits[:length]) not in self._ids:
                return name
        raise AssertionError("two keys with one digest")  # 2^-128

    def _at(self, key: Key) -> Finding:
        return self._live.get(key) or self._resolved[key]

    def _only(self, text: str) -> tuple[Key, Finding]:
        found = [finding for finding in self.find(text) if finding.state is not State.RESOLVED]
        if not found:
            raise ControlError("NoSuchFinding", f"no open finding {text}")
        if len(found) > 1:
            names = ", ".join(finding.id for finding in found[:5])
            raise ControlError("Ambiguous", f"{text} could be {names}")
        return self._ids[found[0].id], found[0]


def fingerprint(finding: Finding) -> bytes:
    """What was observed, in 16 bytes: an acceptance holds for this and nothing else."""
    status = (finding.details or {}).get("status", "present")
    content = repr((sorted(finding.observed.items()), finding.outcome.value, status))
    return sha.blake2b(content.encode("utf-8", "surrogatepass"), 16)


def _digits(key: Key) -> str:
    packed = "\0".join(key).encode("utf-8", "surrogatepass")
    number = int.from_bytes(sha.blake2b(packed, 16, b"EGFIND"), "big")
    return "".join(ALPHABET[number >> shift & 31] for shift in range(123, -1, -5))


def _severity(result: Result) -> Severity:
    """An undecidable evaluation asks for attention, it does not cry."""
    severity = result.rule.severity
    return severity if result.outcome is Outcome.FAIL else min(severity, Severity.MEDIUM)


def _note(result: Result) -> str:
    if result.observation.note or result.outcome is Outcome.FAIL:
        return result.observation.note
    columns = ", ".join(sorted({condition.column for condition in result.failed}))
    return f"could not be decided: {columns} is not known"


def _details(observation: Observation) -> Columns:
    """All that is known; `status` is added where it is not the usual one."""
    if observation.status is Status.PRESENT:
        return observation.columns
    columns: dict[str, Value] = dict(observation.columns)
    columns["status"] = STATUS_WORDS[observation.status]
    return columns


def _without_comparison(result: Result) -> Result:
    """Another reference value: what differed from the last one is not what differs now. The next look tells."""
    observation = result.observation
    columns = {name: value for name, value in observation.columns.items() if name not in COMPARED}
    return result._replace(observation=observation._replace(columns=columns))


def _last_seen(finding: Finding) -> Observation:
    """The observation that a finding was last judged by."""
    columns = dict(finding.details or {})
    status = _STATUS_OF.get(str(columns.get("status")), Status.PRESENT)
    if status is not Status.PRESENT:  # else it is a column of the sensor, as packages have one
        del columns["status"]
    return Observation(
        finding.kind, finding.subject, columns, finding.last_seen, status, finding.origin, finding.actor, finding.note
    )


def _actor(finding: Finding, observation: Observation, same: bool) -> Actor:
    """Who is held to have done what is observed now. What is as it was long ago was not done by who touches it now."""
    burst = observation.origin is Origin.LIVE and observation.at - finding.last_seen <= BURST_MS
    if same and finding.actor != NOBODY:
        return finding.actor
    if same and finding.kind == "file" and not burst:
        return NOBODY
    if observation.actor != NOBODY:
        return observation.actor
    return finding.actor if burst else NOBODY


def _sorted(findings: Iterable[Finding] | Iterator[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: (-finding.severity, -finding.first_seen, finding.id))


def _date(ms: int) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(ms // 1000, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # a year beyond 9999
        return "ever"
