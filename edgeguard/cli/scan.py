"""`edgeguard scan`: check now, with progress on stderr. The scan runs in the daemon; leaving does not stop it. With
`--root` an image is checked instead, by this process (`checking`)."""

from __future__ import annotations

import argparse
from typing import Any

from edgeguard.cli import checking, pages
from edgeguard.cli.console import Console
from edgeguard.cli.words import EXIT, age, count
from edgeguard.errors import ControlError


def arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="do not read files again that look unchanged")
    how.add_argument(
        "--cached", action="store_true", help="read all as programs get it, and from the disk only what differs"
    )
    checking.arguments(parser)


def run(given: argparse.Namespace, console: Console) -> int:
    if given.root:
        return checking.run(given, console)
    if given.baseline or given.policy or given.manifest or given.key:
        raise ControlError("InvalidParameter", "that is for an image: --root DIR is missing")
    answer = follow(console, "Scan", quick=given.quick, cached=given.cached)
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        told = f"{count(answer.get('files'), 'file')} checked in {age((answer.get('seconds') or 0) * 1000)}, "
        console.text(told + f"{count(answer.get('open'), 'open finding')}.")
    return EXIT.get(str(answer.get("verdict")), 3)


def follow(console: Console, verb: str, **parameters: Any) -> dict[str, Any]:
    """The last reply of a verb that reports progress; also used by `baseline learn`."""
    last: dict[str, Any] = {}
    try:
        for last in console.ask(verb, **parameters):
            progress = last.get("progress")
            if isinstance(progress, dict):
                console.progress(pages.progress(progress, console.columns))
    except KeyboardInterrupt:
        console.remark("still running in the daemon; `edgeguard status` shows it")
        raise
    console.end_progress()
    return last
