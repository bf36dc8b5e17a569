"""`edgeguard log [-f]`: events as they were recorded."""

from __future__ import annotations

import argparse
import sys

from edgeguard.cli import pages
from edgeguard.cli.console import Console


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="newest records to show (50)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")


def run(given: argparse.Namespace, console: Console) -> int:
    records = []
    for answer in console.ask("Log", lines=given.lines, follow=given.follow):
        record = answer.get("record")
        if not isinstance(record, dict):
            continue
        if console.form == "text":
            console.text(pages.log_line(record, console.cut))
        elif console.form == "jsonl" or given.follow:
            console.json(record)
        else:
            records.append(record)
        if given.follow:
            sys.stdout.flush()
    if console.form == "json" and not given.follow:
        console.json({"v": 1, "records": records})
    return 0
