"""Policy and reference values <-> what CBOR can hold. The whole document is in `document`. Pure.

Records are positional arrays, maps have text keys. Subjects may be names that are not UTF-8, which no map key can be:
reference values are pairs, in the order of the subjects' bytes, so that equal documents have equal bytes.
Everything that is read is checked by `Part`, whose errors name the path: "rules[3].severity: expected ...".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any

from edgeguard.baseline.policy import Policy, PolicySettings
from edgeguard.codec.digests import named
from edgeguard.codec.values import columns_from_plain, columns_to_plain, from_plain, to_plain
from edgeguard.errors import DecodeError
from edgeguard.model import ATTRIBUTES, Columns, Condition, Mode, Operator, Rule, Severity, Value, Waiver, Watch

if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

TIME_MAX = 2**53  # ms; 285,000 years, and exact in every language that may read this

ReferenceTable = dict[str, dict[str, Columns | None]]
"""kind -> subject -> columns; None: accepted as absent (files only: an overlay over the manifest)."""


class Part:
    """A decoded value and its path in the document; getters check and raise DecodeError."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str) -> None:
        self.value = value
        self.path = path

    def wrong(self, expected: str) -> DecodeError:
        return DecodeError(f"{self.path}: expected {expected}")

    def table(self, keys: frozenset[str]) -> dict[str, Part]:
        """A map with exactly these keys."""
        if not isinstance(self.value, dict) or set(self.value) != keys:
            raise self.wrong("a map of " + ", ".join(sorted(keys)))
        return {key: Part(item, f"{self.path}.{key}") for key, item in self.value.items()}

    def entries(self) -> Iterator[tuple[str, Part]]:
        """A map with any text keys."""
        if not isinstance(self.value, dict):
            raise self.wrong("a map")
        for key, item in self.value.items():
            if not isinstance(key, str):
                raise self.wrong("text keys")
            yield key, Part(item, f"{self.path}.{key}")

    def items(self) -> list[Part]:
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return [Part(item, f"{self.path}[{index}]") for index, item in enumerate(self.value)]

    def row(self, width: int, most: int = 0) -> list[Part]:
        """An array of exactly this many elements, or of up to `most`."""
        items = self.items()
        if not width <= len(items) <= max(width, most):
            raise self.wrong(f"{width} elements")
        return items

    def integer(self, low: int = 0, high: int = TIME_MAX) -> int:
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"a whole number from {low} to {high}")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def text(self) -> str:
        value = from_plain(self.value)
        if not isinstance(value, str):
            raise self.wrong("a text")
        return value

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def blob(self, size: int) -> bytes:
        if not isinstance(self.value, bytes) or len(self.value) != size:
            raise self.wrong(f"{size} bytes")
        return self.value

    def optional(self, getter: Callable[[Part], T]) -> T | None:
        return None if self.value is None else getter(self)

    def one_of(self, make: Callable[[Any], T]) -> T:
        """A member of an enum."""
        try:
            return make(self.value)
        except ValueError:
            raise self.wrong("a known word or number") from None


POLICY_KEYS = frozenset({"watches", "rules", "waivers", "settings"})


def policy_to_plain(policy: Policy) -> dict[str, Any]:
    return {
        "watches": [_watch(watch) for watch in policy.watches],
        "rules": [_rule(rule) for rule in policy.rules],
        "waivers": [_waiver(waiver) for waiver in policy.waivers],
        "settings": _settings(policy.settings),
    }


def policy_from_part(part: Part) -> Policy:
    table = part.table(POLICY_KEYS)
    settings = _settings_from(table["settings"])
    rules = tuple(_rule_from(item) for item in table["rules"].items())
    if len({rule.id for rule in rules}) != len(rules):
        raise table["rules"].wrong("every id once")
    return Policy(
        tuple(_watch_from(item) for item in table["watches"].items()),
        rules,
        tuple(_waiver_from(item) for item in table["waivers"].items()),
        settings,
    )


def _settings(settings: PolicySettings) -> list[Any]:
    """Two elements, and a third where somebody chose the digest."""
    chosen = [] if settings.learn_digest == PolicySettings().learn_digest else [settings.learn_digest]
    return [settings.expires_after, _plain(settings.learn_skip), *chosen]


def _settings_from(part: Part) -> PolicySettings:
    expires_after, skip, *chosen = part.row(2, 3)
    digest = [_named(item) for item in chosen]
    return PolicySettings(expires_after.optional(Part.integer), skip.texts(), *digest)


def _named(part: Part) -> str:
    try:
        return named(part.value).value
    except DecodeError as error:
        raise DecodeError(f"{part.path}: {error}") from error


def references_to_plain(references: Mapping[str, Mapping[str, Columns | None]]) -> dict[str, Any]:
    return {kind: [_pair(subject, table[subject]) for subject in _ordered(table)] for kind, table in references.items()}


def references_from_part(part: Part) -> ReferenceTable:
    return {kind: _subjects(table) for kind, table in part.entries()}


def subject_order(subject: str) -> bytes:
    """Bytes as the file system has them: decides the order of subjects."""
    return subject.encode("utf-8", "surrogateescape")


def _ordered(table: Mapping[str, Columns | None]) -> list[str]:
    return sorted(table, key=subject_order)


def _pair(subject: str, columns: Columns | None) -> list[Any]:
    return [to_plain(subject), None if columns is None else columns_to_plain(columns)]


def _subjects(part: Part) -> dict[str, Columns | None]:
    found: dict[str, Columns | None] = {}
    previous: bytes | None = None
    for item in part.items():
        subject_part, columns = item.row(2)
        subject = subject_part.text()
        order = subject_order(subject)
        if previous is not None and order <= previous:
            raise item.wrong("subjects in order, each once")
        previous = order
        found[subject] = columns.optional(_columns)
    return found


def _columns(part: Part) -> Columns:
    try:
        # Thousands of subjects share a handful of column names.
        return {intern(name): value for name, value in columns_from_plain(part.value).items()}
    except DecodeError as error:
        raise DecodeError(f"{part.path}: {error}") from error


def _plain(value: Value) -> Any:
    return to_plain(value)


_WATCH_MIN = 8
_NEWER = (ATTRIBUTES, "", (), ())  # what a watch has where its row ends before these: most check all and tell nothing


def _watch(watch: Watch) -> list[Any]:
    """Eight elements, and of the newer ones those up to the last that is not as usual."""
    newer = (watch.checks, watch.exclude_at, watch.diff, watch.nodiff)
    kept = max((at + 1 for at, (one, usual) in enumerate(zip(newer, _NEWER, strict=True)) if one != usual), default=0)
    return [
        _plain(watch.path),
        watch.category,
        _plain(watch.exclude),
        watch.recurse,
        watch.content,
        watch.protect,
        watch.only,
        _plain(watch.source),
        *(_plain(item) for item in newer[:kept]),
    ]


def _watch_from(part: Part) -> Watch:
    path, category, exclude, recurse, content, protect, only, source, *more = part.row(
        _WATCH_MIN, _WATCH_MIN + len(_NEWER)
    )
    checks, exclude_at, diff, nodiff = (
        ATTRIBUTES if not more else _shared(more[0].texts()),
        intern(more[1].text()) if len(more) > 1 else "",
        _shared(more[2].texts()) if len(more) > 2 else (),
        _shared(more[3].texts()) if len(more) > 3 else (),
    )
    if more and (checks, exclude_at, diff, nodiff)[len(more) - 1] == _NEWER[len(more) - 1]:
        raise part.wrong("a row that ends with what is not as usual")  # one value, one spelling
    return Watch(
        path.text(),
        category.text(),
        _shared(exclude.texts()),
        recurse.flag(),
        content.flag(),
        protect.flag(),
        only.text(),
        source.text(),
        checks,
        exclude_at,
        diff,
        nodiff,
    )


@lru_cache(256)
def _shared(texts: tuple[str, ...]) -> tuple[str, ...]:
    """One table of a policy gives many watches, and all of its lists are the same."""
    return texts


def _rule(rule: Rule) -> list[Any]:
    return [
        rule.id,
        rule.code,
        rule.kind,
        int(rule.severity),
        _plain(rule.title),
        [_condition(item) for item in rule.where],
        [_condition(item) for item in rule.expect],
        rule.mode.value,
        rule.remediation,
        _plain(rule.fix),
        _plain(rule.source),
    ]


def _rule_from(part: Part) -> Rule:
    id_, code, kind, severity, title, where, expect, mode, remediation, fix, source = part.row(11)
    return Rule(
        id_.text(),
        code.text(),
        kind.text(),
        severity.one_of(Severity),
        title.text(),
        tuple(_condition_from(item) for item in where.items()),
        tuple(_condition_from(item) for item in expect.items()),
        mode.one_of(Mode),
        remediation.text(),
        fix.text(),
        source.text(),
    )


def _condition(condition: Condition) -> list[Any]:
    return [condition.column, condition.operator.value, _plain(condition.operand)]


def _condition_from(part: Part) -> Condition:
    column, operator, operand = part.row(3)
    try:
        value = from_plain(operand.value)
    except DecodeError as error:
        raise DecodeError(f"{operand.path}: {error}") from error
    return Condition(column.text(), operator.one_of(Operator), value)


def _waiver(waiver: Waiver) -> list[Any]:
    return [
        waiver.code,
        _plain(waiver.subject),
        _plain(waiver.owner),
        _plain(waiver.reason),
        waiver.expires,
        _plain(waiver.source),
    ]


def _waiver_from(part: Part) -> Waiver:
    code, subject, owner, reason, expires, source = part.row(6)
    return Waiver(code.text(), subject.text(), owner.text(), reason.text(), expires.integer(-TIME_MAX), source.text())
