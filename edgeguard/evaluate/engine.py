"""Rules, applied: one observation in, one result for every rule of its kind out. Pure; no life of findings here.

Every rule of the kind gives a result, also the ones that do not apply: that is how the ledger learns that a
deviation is gone because its subject no longer matches (a new file was deleted, an account was removed).

How the status of an observation bears on rules:
* PRESENT: as written.
* ABSENT: the rule must ask for `status`; every other rule of the subject does not apply any more. Columns that
  nobody could observe are taken from the reference value, so that "a missing *program*" can be asked.
* UNREADABLE: only a rule that asks for `status` and matches is decided; for all others nothing was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from edgeguard.evaluate.conditions import COMPARING, Test, all_hold, compile_condition, glob, in_words
from edgeguard.model import (
    Columns,
    Condition,
    Observation,
    Operator,
    Outcome,
    Result,
    Rule,
    Status,
    Value,
    Waiver,
)

STATUS_WORDS = {Status.PRESENT: "present", Status.ABSENT: "absent", Status.UNREADABLE: "unreadable"}

MAIN: Mapping[str, tuple[str, ...]] = {
    "file": ("type", "size", "mode", "uid", "gid", "sha256", "blake2b", "target", "caps", "package"),
    "listener": ("protocol", "address", "port", "exe", "user", "unit", "package"),
    "process": ("exe", "exe_state", "user", "unit", "package"),
    "usb": ("vendor", "product", "serial", "manufacturer", "name", "interfaces", "port"),
    "account": ("uid", "gid", "home", "shell", "password", "members"),
    "authorized_key": ("user", "path", "type", "comment", "options"),
    "module": ("size",),
    "mount": ("fstype", "source", "options"),
    "sysctl": ("value",),
    "sshd": ("value",),
    "library_dir": ("origin", "library"),
    "package": ("version", "status"),
}
"""What describes a subject that is new. Process ids are left out: the same program again is the same deviation."""

COMPANION = {"level": "value"}
"""A rank tells nobody anything; its plain value is shown with it."""

_NOTHING: Columns = {}


class References(Protocol):
    """The baseline's reference values."""

    def expected(self, kind: str, subject: str) -> Columns | None:
        """The reference columns of a subject, None if the baseline does not know it."""


class _Compiled(NamedTuple):
    rule: Rule
    where: tuple[Test, ...]
    expect: tuple[tuple[Condition, Test], ...]
    asks_status: bool
    compares: bool  # `expect` asks the reference value: does not apply to an unknown subject


class Why(NamedTuple):
    """For the verb `why`: what the policy says about one subject. The deciding results come first."""

    observation: Observation
    reference: Columns | None
    results: tuple[Result, ...]  # failed and undecided first, then passed; what does not apply is left out
    waivers: tuple[Waiver, ...]  # in force for one of the results


class Waivers:
    """The signed acceptances, ready to be asked. A waiver covers a code and a glob of subjects until it expires."""

    def __init__(self, waivers: Iterable[Waiver] = ()) -> None:
        self._by_code: dict[str, list[tuple[Waiver, Callable[[str], bool]]]] = {}
        for waiver in waivers:
            self._by_code.setdefault(waiver.code, []).append((waiver, glob(waiver.subject)))

    def covering(self, code: str, subject: str, now: int) -> Waiver | None:
        """The waiver with the latest end that covers this now."""
        found = [w for w, match in self._by_code.get(code, ()) if now < w.expires and match(subject)]
        return max(found, key=lambda waiver: waiver.expires) if found else None

    def __iter__(self) -> Iterator[Waiver]:
        return (waiver for entries in self._by_code.values() for waiver, _ in entries)


class Engine:
    """The rules in force. A reloaded policy or baseline is a new engine; this one never changes."""

    def __init__(self, rules: Iterable[Rule], waivers: Iterable[Waiver], references: References) -> None:
        self.rules: Mapping[str, Rule] = {rule.id: rule for rule in rules}
        self.waivers = tuple(waivers)
        self.references = references
        self._waivers = Waivers(self.waivers)
        self._by_kind: dict[str, list[_Compiled]] = {}
        for rule in self.rules.values():
            self._by_kind.setdefault(rule.kind, []).append(_compile(rule))

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds that some rule asks about; observations of others need not be made."""
        return frozenset(self._by_kind)

    def evaluate(self, observation: Observation, now: int) -> list[Result]:
        """One result for each rule of the observation's kind. No rule looks at the time yet; waivers do."""
        del now
        compiled = self._by_kind.get(observation.kind)
        if not compiled:
            return []
        reference = self.references.expected(observation.kind, observation.subject)
        row = _row(observation, reference)
        return [_apply(rule, observation, row, reference) for rule in compiled]

    def why(self, observation: Observation, now: int) -> Why:
        """Which rules decide about this subject, in which file and line, and what they expect."""
        results = [
            result
            for result in self.evaluate(observation, now)
            if result.outcome not in {Outcome.NOTAPPLICABLE, Outcome.NOTCHECKED}
        ]
        results.sort(key=lambda result: (result.outcome is Outcome.PASS, -result.rule.severity))
        found = (self._waivers.covering(r.rule.code, observation.subject, now) for r in results)
        waivers = tuple({waiver: None for waiver in found if waiver})
        reference = self.references.expected(observation.kind, observation.subject)
        return Why(observation, reference, tuple(results), waivers)


def why(
    references: References, rules: Iterable[Rule], waivers: Iterable[Waiver], observation: Observation, now: int
) -> Why:
    """`Engine.why` for a policy that is not in force (lint, a mounted image)."""
    return Engine(rules, waivers, references).why(observation, now)


def _compile(rule: Rule) -> _Compiled:
    return _Compiled(
        rule,
        tuple(compile_condition(condition) for condition in rule.where),
        tuple((condition, compile_condition(condition)) for condition in rule.expect),
        any(condition.column == "status" for condition in (*rule.where, *rule.expect)),
        any(condition.operator in COMPARING for condition in rule.expect),
    )


def _row(observation: Observation, reference: Columns | None) -> dict[str, Value]:
    """The sensor's columns and the three that the engine adds."""
    row: dict[str, Value] = {}
    if observation.status is Status.ABSENT and reference is not None:
        row.update(reference)
    row.update(observation.columns)
    row["known"] = reference is not None
    if observation.status is not Status.PRESENT or "status" not in row:  # a package has a status of its own
        row["status"] = STATUS_WORDS[observation.status]
    row["subject"] = observation.subject
    return row


def _apply(
    compiled: _Compiled, observation: Observation, row: Mapping[str, Value], reference: Columns | None
) -> Result:
    rule, where, expect, asks_status, compares = compiled
    if observation.status is not Status.PRESENT and not asks_status:
        gone = observation.status is Status.ABSENT
        outcome = Outcome.NOTAPPLICABLE if gone else Outcome.NOTCHECKED
        return Result(rule, observation, outcome, (), _NOTHING, _NOTHING)
    applies = all_hold(where, row, reference)
    if applies is not True and observation.status is Status.UNREADABLE:
        return Result(rule, observation, Outcome.NOTCHECKED, (), _NOTHING, _NOTHING)
    if applies is None and observation.status is Status.ABSENT:
        applies = False  # what is gone cannot be asked for more
    if applies is False or (compares and reference is None):
        return Result(rule, observation, Outcome.NOTAPPLICABLE, (), _NOTHING, _NOTHING)
    if applies is None:
        return _undecided(compiled, observation, row, reference)
    failed: list[Condition] = []
    unknown: list[Condition] = []
    for condition, test in expect:
        held = test(row, reference)
        if held is False:
            failed.append(condition)
        elif held is None:
            unknown.append(condition)
    if not failed and not unknown:
        return Result(rule, observation, Outcome.PASS, (), _NOTHING, _NOTHING)
    outcome = Outcome.FAIL if failed else Outcome.UNKNOWN
    return _deviation(rule, observation, row, reference, outcome, tuple(failed or unknown))


def _undecided(compiled: _Compiled, observation: Observation, row: Columns, reference: Columns | None) -> Result:
    """`where` hangs on a column that is not known: nobody can say whether the rule applies."""
    rule = compiled.rule
    open_ones = tuple(
        condition for condition, test in zip(rule.where, compiled.where, strict=True) if test(row, reference) is None
    )
    observed = {condition.column: row.get(condition.column) for condition in open_ones}
    return Result(rule, observation, Outcome.UNKNOWN, open_ones, _NOTHING, observed)


def _deviation(
    rule: Rule,
    observation: Observation,
    row: Columns,
    reference: Columns | None,
    outcome: Outcome,
    failed: tuple[Condition, ...],
) -> Result:
    expected: dict[str, Value] = {}
    observed: dict[str, Value] = {}
    for condition in failed:
        column = condition.column
        if column == "known" and condition.operator is Operator.IS:
            observed.update(_main(observation))
            continue
        observed[column] = row.get(column)
        if condition.operator in COMPARING and reference is not None:
            expected[column] = reference.get(column)
        else:
            expected[column] = in_words(condition)
        if condition.operator in COMPARING and (plain := COMPANION.get(column)) and reference is not None:
            observed[plain] = row.get(plain)
            expected[plain] = reference.get(plain)
    return Result(rule, observation, outcome, failed, expected, observed)


def _main(observation: Observation) -> dict[str, Value]:
    names = MAIN.get(observation.kind)
    if names is None:
        return dict(observation.columns)
    columns = observation.columns
    return {name: columns[name] for name in names if columns.get(name) is not None and columns[name] != ""}
