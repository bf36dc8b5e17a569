"""`edgeguard why PATH|:PORT|PID`: what the policy says about one thing."""

from __future__ import annotations

import argparse
import os

from edgeguard.cli import pages
from edgeguard.cli.console import Console


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="PATH|:PORT|PID", help="a file, a port (:4444, 4444/tcp), a process id")


def run(given: argparse.Namespace, console: Console) -> int:
    subject = given.subject
    if "/" in subject and not subject[0].isdigit() and not subject.startswith(("/", "tcp/", "udp/")):
        subject = os.path.abspath(subject)
    answer = console.ask_once("Why", subject=subject)
    answers = answer.get("answers") or []
    if console.form == "json":
        console.json({"v": 1, "answers": answers})
    for item in answers:
        if console.form == "jsonl":
            console.json(item)
        elif console.form == "text":
            console.text(pages.why(item, console.columns, console.color))
    return 0
