"""`edgeguard undo ID`: take back an acceptance or a remediation."""

from __future__ import annotations

import argparse

from edgeguard.cli.console import Console


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the finding")
    parser.add_argument("-r", "--reason", default="", help="recorded with your name")


def run(given: argparse.Namespace, console: Console) -> int:
    answer = console.ask_once("Undo", id=given.id, reason=given.reason)
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        console.text("\n".join(str(line) for line in answer.get("undone") or ["Nothing to undo."]))
    return 0
