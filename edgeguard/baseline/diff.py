"""What is different between two baselines, in lines that people read. Pure.

Files are not compared here, because they are not in the document: who has both manifests hands in the differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from edgeguard.baseline.document import Baseline
from edgeguard.baseline.encoding import subject_order
from edgeguard.model import ATTRIBUTES, Columns, Condition, Operator, Rule, Watch


class DiffLine(NamedTuple):
    sign: str  # "+" new, "-" gone, "~" changed
    section: str  # "validity", "watch", "rule", "waiver", or a kind
    subject: str
    text: str = ""  # what changed: "severity: high -> low"


def diff(old: Baseline, new: Baseline, files: Iterable[DiffLine] = ()) -> list[DiffLine]:
    """From `old` to `new`: policy first, then reference values by kind, then `files` as they come."""
    return [
        *_head(old, new),
        *_keyed("watch", _watches(old), _watches(new)),
        *_keyed("rule", _rules(old), _rules(new)),
        *_keyed("waiver", _waivers(old), _waivers(new)),
        *_references(old, new),
        *files,
    ]


def _head(old: Baseline, new: Baseline) -> Iterator[DiffLine]:
    for name in ("target", "device", "expires", "mode"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield DiffLine("~", "validity", name, f"{_shown(before)} -> {_shown(after)}")


Fields = Mapping[str, Any]


def _watches(baseline: Baseline) -> dict[str, Fields]:
    return {watch.path: _watch_fields(watch) for watch in baseline.policy.watches}


def _watch_fields(watch: Watch) -> Fields:
    return {
        "category": watch.category,
        "exclude": watch.exclude,
        "recurse": watch.recurse,
        "content": watch.content,
        "protect": watch.protect,
        "only": watch.only,
        **({"checks": watch.checks} if watch.checks != ATTRIBUTES else {}),
        "diff": watch.diff,
        "nodiff": watch.nodiff,
    }


def _rules(baseline: Baseline) -> dict[str, Fields]:
    return {rule.id: _rule_fields(rule) for rule in baseline.policy.rules}


def _rule_fields(rule: Rule) -> Fields:
    return {
        "code": rule.code,
        "kind": rule.kind,
        "severity": rule.severity.name.lower(),
        "mode": rule.mode.value,
        "where": ", ".join(map(_condition, rule.where)),
        "expect": ", ".join(map(_condition, rule.expect)),
        "remediation": rule.remediation,
        "title": rule.title,
        "fix": rule.fix,
    }


def _condition(condition: Condition) -> str:
    if condition.operator in {Operator.SAME, Operator.NOT_BELOW}:
        return f"{condition.column} {condition.operator.value}"
    operator = "=" if condition.operator is Operator.IS else condition.operator.value
    return f"{condition.column} {operator} {_shown(condition.operand)}"


def _waivers(baseline: Baseline) -> dict[str, Fields]:
    return {
        f"{waiver.code} {waiver.subject}": {
            "owner": waiver.owner,
            "reason": waiver.reason,
            "expires": waiver.expires,
        }
        for waiver in baseline.policy.waivers
    }


def _references(old: Baseline, new: Baseline) -> Iterator[DiffLine]:
    for kind in sorted({*old.references, *new.references}):
        before, after = old.references.get(kind, {}), new.references.get(kind, {})
        yield from _keyed(kind, _tables(before), _tables(after))


_ABSENT: Fields = {"": "absent"}


def _tables(table: Mapping[str, Columns | None]) -> dict[str, Fields]:
    return {subject: _ABSENT if columns is None else columns for subject, columns in table.items()}


def _keyed(section: str, old: Mapping[str, Fields], new: Mapping[str, Fields]) -> Iterator[DiffLine]:
    for key in sorted({*old, *new}, key=subject_order):
        before, after = old.get(key), new.get(key)
        if before is None or after is None:
            there = after if after is not None else before
            yield DiffLine("+" if before is None else "-", section, key, _summary(there or {}))
        elif before != after:
            yield DiffLine("~", section, key, ", ".join(changes(before, after)))


def changes(before: Fields, after: Fields) -> Iterator[str]:
    """Column by column, "mode: 0o755 -> 0o4755"; also for the differences of files."""
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            text = f"{_shown(before.get(name), name)} -> {_shown(after.get(name), name)}"
            yield f"{name}: {text}" if name else text


def _summary(fields: Fields) -> str:
    return ", ".join(
        f"{name}={_shown(value, name)}" if name else _shown(value)
        for name, value in fields.items()
        if value not in (None, "", ())
    )


def _shown(value: object, name: str = "") -> str:
    if isinstance(value, bytes):
        return value.hex()
    if name == "mode" and isinstance(value, int):
        return f"0o{value:03o}"
    if value in (None, "", ()):
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)
