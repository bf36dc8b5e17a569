"""`edgeguard accept ID...`: this change is right. Shows exactly what is accepted, and refuses what moved meanwhile."""

from __future__ import annotations

import argparse
import re

from edgeguard.cli.console import Console
from edgeguard.cli.words import phrase
from edgeguard.errors import ControlError

_SPAN = re.compile(r"(\d{1,4})(min|h|d)")
_UNITS = {"min": 60_000, "h": 3_600_000, "d": 86_400_000}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="+", metavar="ID", help="findings, as `edgeguard findings` lists them")
    parser.add_argument("-r", "--reason", required=True, help="why this is right; recorded with your name")
    parser.add_argument("--for", dest="span", metavar="TIME", help="only for a while: 30min, 8h, 7d")


def run(given: argparse.Namespace, console: Console) -> int:
    until = console.now + span(given.span) if given.span else None
    shown = [console.ask_once("Explain", id=name)["finding"] for name in given.id]
    if console.form == "text":
        for finding in shown:
            console.text(f"  {finding['id']}  {phrase(finding)}")
    answer = console.ask_once(
        "Accept",
        ids=[finding["id"] for finding in shown],
        marks=[str(finding.get("mark", "")) for finding in shown],
        reason=given.reason,
        until=until,
    )
    if console.form != "text":
        console.json({"v": 1, **answer})
        return 0
    names = ", ".join(str(finding.get("id")) for finding in answer.get("accepted") or [])
    where = f"in local baseline r{answer['revision']}" if answer.get("revision") else "until the next signed baseline"
    if given.span:
        where = f"for {given.span}"
    undo = f" Undo: {answer['undo']}" if answer.get("undo") else ""
    console.text(f"Accepted {names} {where}.{undo}")
    return 0


def span(text: str) -> int:
    """Milliseconds of `8h`."""
    match = _SPAN.fullmatch(text.strip())
    if not match or not int(match[1]):
        raise ControlError("InvalidParameter", f'"{text}" is not a time; try 30min, 8h or 7d')
    return int(match[1]) * _UNITS[match[2]]
