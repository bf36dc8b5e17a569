"""`[[category]]` of a policy: categories that a site defines beside ours (`categories`). Pure.

A category that is `like` one of ours is judged by the rules of that one, too: rules ask for a category by its name, so
they are widened while they are read, and what is signed says all that is judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgeguard.baseline.categories import CATEGORIES, CHECKS, whole
from edgeguard.baseline.source import BAD, Check, Source, choice
from edgeguard.baseline.toml_positions import Path
from edgeguard.model import ATTRIBUTES, Condition, Operator, Rule

SITE_CATEGORIES_MAX = 100  # the file manifest numbers all categories in a byte

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_WIDER = {
    Operator.IS: Operator.IN,
    Operator.IN: Operator.IN,
    Operator.NOT: Operator.NOT_IN,
    Operator.NOT_IN: Operator.NOT_IN,
}


class SiteCategories:
    """Ours and the site's, while the files of a policy are read."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[str, ...]] = {name: category.checks for name, category in CATEGORIES.items()}
        self._likes: dict[str, str] = {}  # the site's category -> ours
        self._used: list[tuple[Source, Path, str]] = []

    def read(self, source: Source, path: Path, table: dict[str, Any], _seen: set[str]) -> None:
        values = source.table(path, table, _CATEGORY, ("name",))
        name, like = values.get("name"), values.get("like", "")
        if name is None:
            return
        if name in self._checks:
            source.complain((*path, "name"), f'category "{name}" is there already', "another name")
            return
        if "checks" not in table and "like" not in table:
            source.complain(
                path, '"checks" is missing', 'checks = ["mode", "uid", "gid"], or like = "config"', key=True
            )
        if len(self._checks) - len(CATEGORIES) >= SITE_CATEGORIES_MAX:
            source.complain(path, "too many categories", f"at most {SITE_CATEGORIES_MAX}", key=True)
        checks = values.get("checks", CATEGORIES[like].checks if like else ())
        if {"sha256", "growth"} <= set(checks):
            message = "what may grow has another content each time"
            source.complain((*path, "checks"), message, '"sha256" or "growth"')
        self._checks[name] = whole(checks)
        if like:
            self._likes[name] = like

    def use(self, source: Source, path: Path, name: str) -> None:
        """A watch names it; which there are is known when all files are read."""
        self._used.append((source, path, name))

    def check(self) -> None:
        known = choice("category", self._checks)
        for source, path, name in self._used:
            known(source, path, name)

    def warn(self, rules: Iterable[Rule]) -> None:
        """A category that no rule names is watched for nothing."""
        words: set[object] = set()
        for rule in rules:
            for item in rule.where:
                if item.column == "category":
                    words.update(item.operand if isinstance(item.operand, tuple) else (item.operand,))
        for source, path, name in self._used:
            if name in self._checks and name not in CATEGORIES and name not in words:
                expected = 'like = "config" in its [[category]], or a rule'
                source.complain(path, f'no rule names category "{name}"', expected, level="warning")

    def checks(self, name: str) -> tuple[str, ...]:
        return self._checks.get(name, ATTRIBUTES)

    def widened(self, condition: Condition) -> Condition:
        """A condition on a category of ours, for those of the site's that are like it, too."""
        wider = _WIDER.get(condition.operator)
        if condition.column != "category" or wider is None or not self._likes:
            return condition
        named = condition.operand if isinstance(condition.operand, tuple) else (condition.operand,)
        alike = [name for name, like in self._likes.items() if like in named and name not in named]
        return Condition("category", wider, tuple(map(str, (*named, *alike)))) if alike else condition


def _name(source: Source, path: Path, value: Any) -> Any:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    return source.complain(path, "this is no name of a category", 'lower-case letters and digits, such as "recipe"')


def _attributes(source: Source, path: Path, value: Any) -> Any:
    check = choice("checked attribute", CHECKS)
    items = value if isinstance(value, list) else [value]
    found = [check(source, (*path, index), item) for index, item in enumerate(items)]
    return BAD if BAD in found else tuple(found)


_CATEGORY: Mapping[str, Check] = {"name": _name, "like": choice("category", CATEGORIES), "checks": _attributes}
