"""`edgeguard findings`: what differs from the baseline."""

from __future__ import annotations

import argparse
from typing import Any

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.cli.words import EXIT


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also accepted, waived and closed ones")


def run(given: argparse.Namespace, console: Console) -> int:
    found: list[dict[str, Any]] = []
    tail: dict[str, Any] = {}
    for answer in console.ask("Findings", all=given.all):
        finding = answer.get("finding")
        if not isinstance(finding, dict):
            tail = answer
        elif console.form == "jsonl":
            console.json(finding)
        else:
            found.append(finding)
    if console.form == "json":
        console.json({"v": 1, "findings": found, **tail})
    elif console.form == "text":
        console.text(pages.findings(found, tail, console.now, console.columns, console.color, given.all))
    return EXIT.get(str(tail.get("verdict")), 3)
