#!/usr/bin/python3
"""Make everything that comes from the table of finding codes: `python3 packaging/catalog.py`.

    packaging/edgeguard.catalog            what `journalctl -x` shows below an entry
    docs/findings.md                       every finding, for people
    packaging/man/edgeguard-findings.7     the same as a man page

The files are committed; a test compares them with what this makes.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, TREE)

from edgeguard.codes import Code, load, message_id  # noqa: E402 - the tree's own, found by the line above

GROUPS = {
    "FILE": "Files",
    "PERS": "Persistence",
    "ACCT": "Accounts",
    "PORT": "Open ports",
    "PROC": "Processes",
    "USB": "USB devices",
    "HOST": "Kernel and mounts",
    "SSH": "SSH server",
    "PKG": "Packages",
    "BASE": "Baselines",
    "POL": "Policy",
    "HLTH": "EdgeGuard itself",
    "ACT": "Remediations",
}
ATTACK = "https://attack.mitre.org/techniques/"


def catalog(codes: Mapping[str, Code]) -> str:
    """The journal's catalogue (systemd.io/CATALOG). Variables between @ are the entry's own fields."""
    parts = ["# Made by packaging/catalog.py from edgeguard/codes.toml: change it there.\n"]
    for code in codes.values():
        body = wrap(code.rationale) + "\n\n" + wrap("What to do: " + code.fix)
        parts.append(
            f"-- {message_id(code.code)}\n"
            f"Subject: {code.title} (@EDGEGUARD_FINDING@)\n"
            "Defined-By: EdgeGuard\n"
            "Support: man:edgeguard-findings(7)\n"
            f"Documentation: man:edgeguard-findings(7)\n\n"
            f"Subject of this finding: @EDGEGUARD_SUBJECT@\n\n{body}\n\n"
            "More: edgeguard explain @EDGEGUARD_FINDING@\n"
        )
    return "\n".join(parts)


def markdown(codes: Mapping[str, Code]) -> str:
    """docs/findings.md."""
    parts = [
        (
            "# Findings\n\nMade by `packaging/catalog.py` from `edgeguard/codes.toml`: change it there.\n\n"
            "Every finding has a code that never changes its meaning. `edgeguard explain CODE` shows the same on the\n"
            "device. The severity is the default; a rule of the policy may say another. "
            "`MESSAGE_ID` finds its entries:\n`journalctl MESSAGE_ID=...`.\n"
        )
    ]
    group = ""
    for code in codes.values():
        part = code.code.split("-")[1]
        if part != group:
            group = part
            parts.append(f"## {GROUPS[group]}\n")
        parts.append(_section(code))
    return "\n".join(parts)


def _section(code: Code) -> str:
    lines = [f"### {code.code}: {code.title}\n", f"Severity: {code.severity}\n", wrap(code.rationale) + "\n"]
    lines.append(wrap("**What to do.** " + code.fix) + "\n")
    links = [f"[{name}]({ATTACK}{name.replace('.', '/')}/)" for name in code.attack]
    references = [*code.references, *links]
    if references:
        lines.append("References: " + ", ".join(references) + "\n")
    lines.append(f"`MESSAGE_ID={message_id(code.code)}`\n")
    return "\n".join(lines)


def man(codes: Mapping[str, Code]) -> str:
    """edgeguard-findings.7 in roff."""
    parts = [
        (
            '.\\" Made by packaging/catalog.py from edgeguard/codes.toml: change it there.\n'
            '.TH EDGEGUARD-FINDINGS 7 "" "EdgeGuard" "EdgeGuard"\n'
            ".SH NAME\nedgeguard-findings \\- what EdgeGuard reports, why, and what to do\n"
            ".SH DESCRIPTION\nEvery finding has a code that never changes its meaning.\n"
            "The severity given is the default; a rule of the policy may say another.\n"
            ".B edgeguard explain\n.I CODE\nshows the same text.\n"
        )
    ]
    group = ""
    for code in codes.values():
        part = code.code.split("-")[1]
        if part != group:
            group = part
            parts.append(f".SH {GROUPS[group].upper()}\n")
        text = f".SS {code.code}: {_roff(code.title)}\nSeverity: {code.severity}\n.PP\n{_roff(code.rationale)}\n"
        text += f".PP\nWhat to do: {_roff(code.fix)}\n"
        references = ", ".join([*code.references, *(f"ATT&CK {name}" for name in code.attack)])
        parts.append(text + (f".PP\nReferences: {_roff(references)}\n" if references else ""))
    parts.append(".SH SEE ALSO\n.BR edgeguard (1),\n.BR edgeguardd (8),\n.BR journalctl (1)\n")
    return "".join(parts)


def _roff(text: str) -> str:
    """Text as roff takes it literally, in lines that start with no control character."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    lines = textwrap.wrap(escaped, 110, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\\&" + line if line.startswith(".") else line for line in lines)


def wrap(text: str) -> str:
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


MADE = {
    "packaging/edgeguard.catalog": catalog,
    "docs/findings.md": markdown,
    "packaging/man/edgeguard-findings.7": man,
}


def main() -> int:
    codes = load()
    for name, make in MADE.items():
        path = os.path.join(TREE, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(make(codes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
