"""Policy files, from TOML to values. Pure.

Files are read in the order given, vendor and site together (see `store.read_policy_dirs`). Here is which sections and
keys there are and how a later file changes an earlier one; single values are checked in `source`, conditions in
`conditions_toml`. A policy with any error is refused as a whole, with every error in it: half a policy would guard
half a device.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from edgeguard.baseline.conditions_toml import Kinds, conditions
from edgeguard.baseline.contents import CHOICES, OtherDigest, chosen, in_terms_of
from edgeguard.baseline.policy import Codes, Policy, PolicySettings
from edgeguard.baseline.site_categories import SiteCategories
from edgeguard.baseline.source import BAD, Check, Source, boolean, choice, did_you_mean, duration, moment, text, texts
from edgeguard.baseline.toml_positions import Path
from edgeguard.codec.digests import Algorithm
from edgeguard.errors import PolicyError, PolicyProblem
from edgeguard.model import Condition, Mode, Rule, Severity, Waiver, Watch

WATCHES_MAX, RULES_MAX, WAIVERS_MAX = 3000, 2000, 1000  # far above what people keep in order; Debian's for AIDE: 1,700

SEVERITIES: Mapping[str, Severity] = {severity.name.lower(): severity for severity in Severity}

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_PATH = re.compile(r"(?:/[^/\[]+)+|/")  # `*` and `?` stay within a component; `**` is refused below


class _Draft:
    """A rule while later files may still change it."""

    def __init__(self, source: Source, path: Path, values: dict[str, Any]) -> None:
        self.values: dict[str, Any] = values
        self.sources = [source.position(path)]


class Reader:
    def __init__(
        self, codes: Codes | None, kinds: Kinds | None, remediations: Collection[str], now: int | None
    ) -> None:
        self.problems: list[PolicyProblem] = []
        self._order: dict[str, int] = {}  # files as they were read
        self._codes, self._kinds, self._now = codes, kinds, now
        self._watches: dict[str, Watch] = {}
        self._categories = SiteCategories()
        self._off: dict[str, str] = {}  # path -> file:line
        self._drafts: dict[str, _Draft] = {}
        self._waivers: list[Waiver] = []
        self._settings: dict[str, Any] = {}
        code = text if codes is None else choice("finding code", codes)
        kind = text if kinds is None else choice("kind", kinds)
        self._rule_shape: dict[str, Check] = {
            "id": _rule_id,
            "code": code,
            "kind": kind,
            "severity": choice("severity", SEVERITIES),
            "title": text,
            "where": _as_is,
            "expect": _as_is,
            "mode": choice("mode", [mode.value for mode in Mode]),
            "remediation": choice("remediation", (*remediations, "")),
            "fix": text,
            "override": boolean,
            "off": boolean,
        }
        self._waiver_shape: dict[str, Check] = {
            "code": code,
            "subject": text,
            "owner": text,
            "reason": text,
            "expires": moment,
        }
        self._settings_shape: dict[str, tuple[dict[str, Check], str]] = {
            "validity": ({"expires_after": _expires_after}, ""),
            "learn": ({"skip": _list_of(kind), "digest": choice("digest", CHOICES)}, "learn_"),
        }
        self._sections = {
            "category": self._categories.read,
            "watch": self._read_watch,
            "rule": self._read_rule,
            "waiver": self._read_waiver,
        }

    def read(self, name: str, data: bytes) -> None:
        source = Source(name, data, self.problems)
        self._order[source.name] = len(self._order)
        seen: set[str] = set()  # watched paths of this file: twice in one file is a slip, in two it is an override
        for section, value in source.document.items():
            if section in self._sections:
                if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                    source.complain((section,), f'"{section}" is a list of tables', f"[[{section}]]", key=True)
                    continue
                for index, table in enumerate(value):
                    self._sections[section](source, (section, index), table, seen)
            elif section in self._settings_shape:
                shape, prefix = self._settings_shape[section]
                found = source.table((section,), value, shape)
                self._settings.update({prefix + key: item for key, item in found.items()})
            else:
                known = (*self._sections, *self._settings_shape)
                message = f'unknown section "{section}"{did_you_mean(section, known)}'
                source.complain((section,), message, "one of " + ", ".join(known), key=True)

    def _read_watch(self, source: Source, path: Path, table: dict[str, Any], seen: set[str]) -> None:
        values = source.table(path, table, _WATCH, () if table.get("off") is True else ("path", "category"))
        if "category" in values:
            self._categories.use(source, (*path, "category"), values["category"])
        if not {"path"} <= set(values) or not ("category" in values or values.get("off")):
            return
        if values.get("diff") and values.get("category") == "key":
            message = "of keys no copy is kept and no difference is told"
            source.complain((*path, "diff"), message, "another category, or no diff", key=True)
        globs = range(len(values.get("exclude", ())))
        lines = "\n".join(str(source.line((*path, "exclude", index))) for index in globs)
        for place in values.pop("path"):
            if place in seen:
                source.complain((*path, "path"), f'"{place}" is watched twice in this file', "one table for a path")
            seen.add(place)
            self._watches.pop(place, None)
            if values.get("off"):
                self._off[place] = source.position(path)
            else:
                self._off.pop(place, None)
                kept = {key: value for key, value in values.items() if key != "off"}
                self._watches[place] = Watch(path=place, source=source.position(path), exclude_at=lines, **kept)

    def _read_rule(self, source: Source, path: Path, table: dict[str, Any], _seen: set[str]) -> None:
        override = table.get("override") is True
        values = source.table(path, table, self._rule_shape, ("id",) if override else ("id", "code", "kind", "expect"))
        if "id" not in values:
            self._conditions(source, path, values, values.get("kind"))  # for its problems
            return
        base = self._drafts.get(values["id"])
        if override:
            self._override(source, path, values, base)
        elif base is not None:
            message = f'rule "{values["id"]}" is there already, at {base.sources[0]}'
            source.complain((*path, "id"), message, "another id, or override = true to change that rule")
        else:
            self._conditions(source, path, values, values.get("kind"))
            self._drafts[values["id"]] = _Draft(source, path, values)

    def _override(self, source: Source, path: Path, values: dict[str, Any], base: _Draft | None) -> None:
        if base is None:
            near = did_you_mean(values["id"], self._drafts)
            source.complain(
                (*path, "id"), f'no rule "{values["id"]}" before this one{near}', "the id of a rule to change"
            )
            return
        for key in ("kind", "code"):
            if key in values:
                source.complain((*path, key), f'"{key}" of a rule cannot be changed', "a rule of its own", key=True)
        self._conditions(source, path, values, base.values.get("kind"))
        for key in ("where", "expect"):
            if key in values:
                values[key] = {**base.values.get(key, {}), **values[key]}
        base.values.update(values)
        base.sources.append(source.position(path))

    def _conditions(self, source: Source, path: Path, values: dict[str, Any], kind: str | None) -> None:
        """Put parsed conditions in the place of the TOML tables."""
        columns = self._kinds.get(kind) if self._kinds is not None and kind is not None else None
        for key in ("where", "expect"):
            if key in values:
                values[key] = conditions(source, (*path, key), values[key], columns)

    def _read_waiver(self, source: Source, path: Path, table: dict[str, Any], _seen: set[str]) -> None:
        values = source.table(path, table, self._waiver_shape, ("code", "subject", "owner", "reason"))
        if "expires" not in table:
            source.complain(
                path, "waiver without an end date; it is not applied", "expires = 2027-02-01", key=True, level="warning"
            )
        elif self._now is not None and values.get("expires", self._now + 1) <= self._now:
            source.complain((*path, "expires"), "this waiver has ended", "a date to come", level="warning")
        if set(values) == set(self._waiver_shape):
            self._waivers.append(Waiver(source=source.position(path), **values))

    def finish(self) -> Policy:
        watches = self._finish_watches()
        rules = tuple(self._rule(draft) for draft in self._drafts.values() if self._whole(draft))
        self._categories.warn(rules)
        for noun, found, most in (
            ("watches", watches, WATCHES_MAX),
            ("rules", rules, RULES_MAX),
            ("waivers", self._waivers, WAIVERS_MAX),
        ):
            if len(found) > most:
                self.problems.append(PolicyProblem("policy", 1, 1, f"{len(found)} {noun}", f"at most {most}"))
        self.problems.sort(key=lambda problem: (self._order.get(problem.file, -1), problem.line, problem.column))
        if any(problem.level == "error" for problem in self.problems):
            raise PolicyError(self.problems)
        settings = PolicySettings(**self._settings)
        rules = in_terms_of(rules, Algorithm.SHA256)  # the content has one word, until there is a baseline
        policy = Policy(watches, rules, tuple(self._waivers), settings, tuple(self.problems))
        try:
            chosen(policy, Algorithm.SHA256)
        except OtherDigest as error:
            problem = PolicyProblem(
                "policy", 1, 1, str(error), "rules that agree with each other and with learn.digest"
            )
            raise PolicyError([*self.problems, problem]) from error
        return policy

    def _finish_watches(self) -> tuple[Watch, ...]:
        """`off` below a watched tree is an exclude of that tree. What a category checks goes with the watch."""
        self._categories.check()
        watches = []
        for written in self._watches.values():
            checks = self._categories.checks(written.category)
            watch = written._replace(checks=checks, content=written.content and "sha256" in checks)
            below = {place: at for place, at in self._off.items() if _covers(watch, place)}
            watches.append(_with_excludes(watch, below) if below else watch)
        return tuple(watches)

    @staticmethod
    def _whole(draft: _Draft) -> bool:
        return not draft.values.get("off") and {"code", "kind", "expect"} <= set(draft.values)

    def _rule(self, draft: _Draft) -> Rule:
        values = draft.values
        code: str = values["code"]
        title, severity = (self._codes or {}).get(code, (code, "medium"))
        return Rule(
            id=values["id"],
            code=code,
            kind=values["kind"],
            severity=SEVERITIES[values.get("severity", severity)],
            title=values.get("title", title),
            where=self._where(values),
            expect=_flat(values["expect"]),
            mode=Mode(values.get("mode", "audit")),
            remediation=values.get("remediation", ""),
            fix=values.get("fix", ""),
            source=", ".join(draft.sources),
        )

    def _where(self, values: dict[str, Any]) -> tuple[Condition, ...]:
        found = _flat(values.get("where", {}))
        return tuple(map(self._categories.widened, found)) if values["kind"] == "file" else found


def _flat(table: Mapping[str, tuple[Condition, ...]]) -> tuple[Condition, ...]:
    return tuple(condition for group in table.values() for condition in group)


def _covers(watch: Watch, place: str) -> bool:
    """Does the watch reach this place? Component by component: both may have wildcards."""
    parts, inner = ([part for part in path.split("/") if part] for path in (watch.path, place))
    deep = len(inner) > len(parts) if watch.recurse else len(inner) == len(parts)
    same_length = len(inner) == len(parts) and watch.path != place
    return (deep or same_length) and all(fnmatchcase(one, part) for part, one in zip(parts, inner, strict=False))


def _with_excludes(watch: Watch, places: Mapping[str, str]) -> Watch:
    lines = "\n".join((*watch.exclude_at.split("\n"), *places.values()) if watch.exclude else places.values())
    return watch._replace(exclude=(*watch.exclude, *places), exclude_at=lines)


def _as_is(_source: Source, _path: Path, value: Any) -> Any:
    """Conditions wait until the kind is known."""
    return value


def _rule_id(source: Source, path: Path, value: Any) -> Any:
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    return source.complain(
        path, "this is no id of a rule", 'lower-case words with dots, such as "file.content.program"'
    )


def _watch_paths(source: Source, path: Path, value: Any) -> Any:
    places = texts(source, path, value)
    if places is BAD:
        return BAD
    for place in places:
        if not _PATH.fullmatch(place) or "**" in place or any(part in {".", ".."} for part in place.split("/")):
            expected = 'an absolute path without ".." and "**", such as "/etc" or "/home/*/.ssh"'
            return source.complain(path, f'"{place}" is not a path to watch', expected)
    return places


def _globs(source: Source, path: Path, value: Any) -> Any:
    patterns = texts(source, path, value)
    if patterns is not BAD:
        for pattern in patterns:
            if not pattern.startswith(("/", "**/")):
                expected = 'a glob over absolute paths, such as "/etc/*.tmp" or "**/*.tmp"'
                return source.complain(path, f'"{pattern}" matches no absolute path', expected)
    return patterns


def _diff(source: Source, path: Path, value: Any) -> Any:
    """true: every file of the watch; false: none."""
    if isinstance(value, bool):
        return ("**",) if value else ()
    if not isinstance(value, (str, list)):
        return source.complain(path, "this says not of which files a difference is told", "true, false or globs")
    return _globs(source, path, value)


_WATCH: Mapping[str, Check] = {
    "path": _watch_paths,
    "category": text,  # which there are is known when all files are read
    "exclude": _globs,
    "recurse": boolean,
    "content": boolean,
    "protect": boolean,
    "only": choice("selection", ("setid", "")),
    "off": boolean,
    "diff": _diff,
    "nodiff": _globs,
}


def _expires_after(source: Source, path: Path, value: Any) -> Any:
    return None if value == "never" else duration(source, path, value)


def _list_of(check: Check) -> Check:
    """A list whose every element passes `check`, as a tuple."""

    def whole(source: Source, path: Path, value: Any) -> Any:
        if texts(source, path, value) is BAD:
            return BAD
        items = value if isinstance(value, list) else [value]
        checked = [check(source, (*path, index), item) for index, item in enumerate(items)]
        return BAD if BAD in checked else tuple(checked)

    return whole
