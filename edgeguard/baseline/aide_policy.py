"""Rules of AIDE as a policy of ours: TOML to be read by people, and a list of what it does not carry. Pure.

Whatever is in doubt is watched: a rule that selects becomes wider where it cannot be the same, and one that leaves
something out is only carried where it is exactly a glob. What is then watched less than by AIDE is said as lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

from edgeguard.baseline.aide_conf import AideRule, Said
from edgeguard.baseline.aide_regex import ANY, CUT, DOT, STAR, NoGlob, Tokens, globs
from edgeguard.baseline.categories import whole
from edgeguard.model import Watch

WATCHES_MAX = 2600  # of the 3,000 that a policy may have; ours are some 300, Debian's for AIDE 1,700
PATH_MAX = 1000  # characters, as in a policy
TABLE_MAX = 100  # paths in one table
LISTED_MAX = 100  # sentences that the policy repeats; all of them are said
SHOWN_MAX = 100  # characters of an expression in a sentence
_PLAIN = "/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
EXCLUDES_MAX = 400  # of the 500 in one list
TYPES = (
    "{} exclusions are for some types of file, or (AIDE 0.19) for what ends so ($): "
    "whatever has such a name is left out, a directory with all in it"
)
OPEN = "{} rules have no $ at their end: a name that only begins like theirs is not watched"


class _Found(NamedTuple):
    path: str
    recurse: bool
    category: str
    rule: AideRule


class Imported(NamedTuple):
    text: str
    said: tuple[Said, ...]
    watches: int
    left_out: int


class Importer:
    """`standing`: what other policy files watch already; a watch of the same path would replace theirs."""

    def __init__(self, standing: Iterable[Watch] = ()) -> None:
        self._standing = {watch.path: watch for watch in standing}
        self._said: list[Said] = []
        self._watches: dict[str, _Found] = {}
        self._off: dict[str, AideRule] = {}
        self._excludes: dict[str, AideRule] = {}
        self._categories: dict[tuple[str, ...], str] = {}
        self._open = self._typed = 0

    def run(self, rules: Sequence[AideRule], said: Iterable[Said], source: str) -> Imported:
        for rule in sorted(rules, key=lambda rule: rule.sign not in "+="):  # what is selected by name stays so
            try:
                if rule.sign in "+=":
                    self._select(rule)
                else:
                    self._leave_out(rule)
            except NoGlob as why:
                self._no_glob(rule, why)
        for sentence, number in ((OPEN, self._open), (TYPES, self._typed)):
            if number:
                self._said.append(Said(source, 0, sentence.format(number)))
        found = tuple(sorted((*said, *self._said), key=lambda item: (item.file, item.line)))
        left_out = len(self._off) + len(self._excludes)
        return Imported(self._text(source, found), found, len(self._watches), left_out)

    def _say(self, rule: AideRule, message: str, *, lost: bool) -> None:
        self._said.append(Said(rule.file, rule.line, message, lost))

    def _no_glob(self, rule: AideRule, why: NoGlob) -> None:
        """What selects takes the directory above, if there is one; what leaves out leaves nothing out."""
        expression = rule.expression.removeprefix("^")
        directory = expression[: len(expression) - len(expression.lstrip(_PLAIN))].rpartition("/")[0]
        message = f"{_short(rule.expression)} cannot be a glob: {why}"
        if rule.sign in "!-":
            self._say(rule, f"{message}; it stays watched", lost=False)
        elif directory.count("/") < 2:  # not all of /var for one rule
            self._say(rule, message, lost=True)
        else:
            self._say(rule, f"{message}; {directory} is watched instead, which is more", lost=False)
            self._watch(rule, directory, recurse=True)

    # -- what is watched

    def _select(self, rule: AideRule) -> None:
        found = globs(rule.expression, wider=True)
        for tokens in found.paths:
            if self._matches_nothing(rule, tokens):
                continue
            path, cut = _watched(tokens)
            if found.wider or cut:
                self._say(
                    rule, f"{_short(rule.expression)} is no glob: {path} is watched instead, which is more", lost=False
                )
            children = rule.sign == "=" and rule.expression.endswith("/")
            if children and not cut:
                self._say(rule, f"all below {path} is watched, and not only what lies in it", lost=False)
            recurse = cut or children or not (found.anchored or rule.sign == "=")
            if recurse and not (cut or children or found.anchored or path.endswith("*")):
                self._open += path != "/"
            self._watch(rule, path, recurse)

    def _matches_nothing(self, rule: AideRule, tokens: Tokens) -> bool:
        """Two slashes in a row are in no path that AIDE looks at."""
        if not any(one == other == "/" for one, other in pairwise(tokens)):
            return False
        self._say(rule, f"{_short(rule.expression)} has two slashes in a row, as no path has", lost=False)
        return True

    def _watch(self, rule: AideRule, path: str, recurse: bool) -> None:
        before = self._watches.get(path)
        if (standing := self._standing.get(path)) is not None:
            less = standing.only or (recurse and not standing.recurse) or not set(rule.checks) <= set(standing.checks)
            message = f"{path} is watched by {standing.source} already, which stays"
            self._say(rule, message + (" and checks less" if less else ""), lost=bool(less))
        elif before is not None and before.recurse >= recurse:
            if before.category != self._category(rule):
                self._say(rule, f"{path} is watched as {before.rule.file}:{before.rule.line} says", lost=True)
        elif len(self._watches) >= WATCHES_MAX:
            self._say(rule, f"more than {WATCHES_MAX} watched paths: {path} is not one of them", lost=True)
        elif not _writable(path):
            self._say(rule, f"{path} is no path that can be watched", lost=True)
        else:
            self._watches[path] = _Found(path, recurse, self._category(rule), rule)

    def _category(self, rule: AideRule) -> str:
        checks = whole(rule.checks)
        if checks not in self._categories:
            name = "aide-" + (re.sub(r"[^a-z0-9]+", "-", rule.group.lower()).strip("-") or "rule")[:20].strip("-")
            taken = set(self._categories.values())
            number = 2
            while name in taken:
                name, number = f"{name[:24].rstrip('0123456789-')}-{number}", number + 1
            self._categories[checks] = name
        return self._categories[checks]

    # -- what is left out

    def _leave_out(self, rule: AideRule) -> None:
        found = globs(rule.expression, wider=False)
        self._typed += rule.types not in ("", "0") or (rule.sign == "!" and found.anchored)
        for tokens in found.paths:
            if self._matches_nothing(rule, tokens):
                continue
            if found.anchored and tokens[-1:] == ("/",):
                self._say(rule, f"{_short(rule.expression)} ends with a slash, as no path does", lost=False)
                continue
            place = _excluded(tokens)
            if not place.strip("/*"):
                self._say(rule, f"{_short(rule.expression)} would leave everything out: it is not carried", lost=False)
                continue
            if not _writable(place):
                self._say(rule, f"{place} is no path that a policy can hold: it stays watched", lost=False)
                continue
            if place in self._watches or place in self._standing:
                self._say(rule, f"{place} is watched by name: it stays so", lost=False)
            elif "**" in place or "[" in place:
                if len(self._excludes) < EXCLUDES_MAX:
                    self._excludes[place] = rule
                else:
                    self._say(rule, f"more than {EXCLUDES_MAX} exclusions: {place} stays watched", lost=False)
            else:
                self._off[place] = rule

    # -- as text

    def _text(self, source: str, said: Sequence[Said]) -> str:
        repeated = sorted(said, key=lambda item: not item.lost)[:LISTED_MAX]
        lines = [
            f"# Made from {_comment(source)} by `edgeguard policy import-aide`. Yours to edit; nothing makes it again.",
            "#",
            "# The deepest path decides here, not the first rule. What was not carried, or is not as it was:",
            *(f"#   {_comment(item.file)}:{item.line}: {_comment(item.message)}" for item in repeated),
            *(
                [f"#   and {len(said) - len(repeated)} more, which the import said"]
                if len(said) > len(repeated)
                else []
            ),
            "",
        ]
        for checks, name in self._categories.items():
            like = "log" if "growth" in checks else "other"
            lines += ["[[category]]", f'name = "{name}"', f'like = "{like}"', f"checks = {_list(checks)}", ""]
        for (_file, category, recurse, excludes), rows in self._grouped().items():
            for first in range(0, len(rows), TABLE_MAX):
                lines += _table([(found.path, found.rule) for found in rows[first : first + TABLE_MAX]])
                lines.append(f'category = "{category}"')
                lines += [] if recurse else ["recurse = false"]
                lines += [f"exclude = {_list(excludes)}", ""] if excludes else [""]
        off: dict[str, list[tuple[str, AideRule]]] = {}
        for place, rule in self._off.items():
            off.setdefault(rule.file, []).append((place, rule))
        for places in off.values():
            for first in range(0, len(places), TABLE_MAX):
                lines += [*_table(places[first : first + TABLE_MAX]), "off = true", ""]
        return "\n".join(lines)

    def _grouped(self) -> dict[tuple[str, str, bool, tuple[str, ...]], list[_Found]]:
        """Watches that may stand in one table: of one file of AIDE's, and alike."""
        groups: dict[tuple[str, str, bool, tuple[str, ...]], list[_Found]] = {}
        for found in self._watches.values():
            excludes = tuple(glob for glob in self._excludes if found.recurse and _may_meet(glob, found.path))
            groups.setdefault((found.rule.file, found.category, found.recurse, excludes), []).append(found)
        return groups


def _table(rows: Sequence[tuple[str, AideRule]]) -> list[str]:
    """The head of a table of watches, with the lines of AIDE that it comes from."""
    numbers = ", ".join(str(number) for number in sorted({rule.line for _, rule in rows}))
    return [f"# {_comment(rows[0][1].file)}: {numbers}", "[[watch]]", f"path = {_list([path for path, _ in rows])}"]


def _watched(tokens: Tokens) -> tuple[str, bool]:
    """A path that a watch can have, and whether it was cut off at a directory: then all below that is watched."""
    path = ""
    for token in tokens:
        if token in (ANY, CUT):
            return re.sub("//+", "/", path[: path.rfind("/") + 1]).rstrip("/") or "/", True
        if token != STAR or not path.endswith("*"):
            path += "?" if token == DOT or token.startswith("[") else token
    return re.sub("//+", "/", path).rstrip("/") or "/", False


def _excluded(tokens: Tokens) -> str:
    """The glob of something that is left out. What follows `.*` at the end is below it anyway."""
    while tokens and tokens[-1] == ANY:
        tokens = (*tokens[:-1], STAR)
    text = ""
    for at, token in enumerate(tokens):
        if token == ANY:
            # In a glob `**/` may be nothing; `.*/` is at least the slash.
            text += "*/**" if tokens[at + 1 : at + 2] == ("/",) else "**"
        elif token != STAR or not text.endswith("*"):  # two of them would cross directories
            text += "?" if token == DOT else token
    text = re.sub("//+", "/", text)
    inside = text.endswith("/") and not text.endswith("**/")  # what is in it, and not the directory itself
    return text + "**" if inside and text != "/" else text.rstrip("/") or "/"


def _may_meet(glob: str, path: str) -> bool:
    """Could this exclusion match something below the path? Decided by the parts before the first `**`."""
    parts = [part for part in path.split("/") if part]
    inner = [part for part in glob.split("**", maxsplit=1)[0].split("/") if part]
    if not glob.split("**", maxsplit=1)[0].endswith("/"):
        inner = inner[:-1]
    return all(fnmatchcase(one, other) or "*" in one + other for one, other in zip(inner, parts, strict=False))


def _writable(path: str) -> bool:
    """May a policy hold it: UTF-8, no control characters, not longer than its texts, no dots as directories?"""
    plain = path.isprintable() and len(path) <= PATH_MAX and path.startswith(("/", "**/"))
    return plain and not any(part in (".", "..") for part in path.split("/"))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def _comment(text: str) -> str:
    """One line of a comment: TOML allows no control characters in it, and it must be UTF-8."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in plain)


def _quoted(text: str) -> str:
    """A text of TOML; control characters and lone surrogates were refused before."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]" if len(texts) != 1 else _quoted(texts[0])
