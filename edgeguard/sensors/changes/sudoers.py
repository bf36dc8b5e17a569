"""sudoers and its parts: which rules, settings, aliases and includes came or went. Pure.

As sudo reads them (sudoers(5)): a backslash joins lines, "#" begins a comment unless a number or an include follows.
The last rule that matches wins, so another order is a change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from edgeguard.sensors.changes.secrets import line

_AROUND = re.compile(r" ?([=,:()!]) ?")  # blanks around these say nothing
_INCLUDES = ("#include", "@include")
_ALIASES = ("User_Alias", "Runas_Alias", "Host_Alias", "Cmnd_Alias", "Cmd_Alias")


def tell(old: str, new: str) -> Iterator[str]:
    shown: dict[str, str] = {}
    before, after = list(_entries(old, shown)), list(_entries(new, shown))
    gone, came = Counter(before) - Counter(after), Counter(after) - Counter(before)
    for entry in came.elements():
        yield f"{_noun(entry)} added: {line(shown[entry])}"
    for entry in gone.elements():
        yield f"{_noun(entry)} removed: {line(shown[entry])}"
    if [item for item in before if not gone[item]] != [item for item in after if not came[item]]:
        yield "rules stand in another order: the last one that matches wins"


def _entries(text: str, shown: dict[str, str]) -> Iterator[str]:
    """Each entry without the blanks that say nothing; `shown` learns how it is written."""
    joined = ""
    for raw in (*text.split("\n"), ""):
        joined += raw
        if joined.endswith("\\") and not joined.endswith("\\\\"):
            joined = joined[:-1] + " "
            continue
        written = " ".join(_without_comment(joined).split())
        joined = ""
        if written:
            entry = _AROUND.sub(r"\1", written)
            shown[entry] = written
            yield entry


def _noun(entry: str) -> str:
    if entry.startswith(_INCLUDES):
        return "include"
    if entry.startswith("Defaults"):
        return "setting"
    return "alias" if entry.split(None, 1)[0] in _ALIASES else "rule"


def _without_comment(text: str) -> str:
    if text.lstrip().startswith(_INCLUDES):
        return text
    quoted = False
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif char == '"':
            quoted = not quoted
        elif char == "#" and not quoted and not text[at + 1 : at + 2].isdecimal():
            return text[:at]
        at += 1
    return text
