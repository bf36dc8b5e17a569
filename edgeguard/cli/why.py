"""`edgeguard why PATH|:PORT|PID`: what the policy says about one thing."""

from __future__ import annotations

import argparse
import contextlib
import os

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.cli.text import escape


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
    if console.form == "text" and subject.isdigit():
        console.text(process_now(int(subject)))
    return 0


def process_now(pid: int) -> str:
    """How a process is doing at this moment, by psutil: what no policy says but a technician asks next. One line."""
    import psutil  # 30 ms, only here; the daemon does without

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            cpu = process.cpu_times()
            words = [
                process.status(),
                f"{process.memory_info().rss / 1e6:.1f} MB",
                f"CPU {cpu.user + cpu.system:.1f} s",
                f"{process.num_threads()} threads",
                f"nice {process.nice()}",
            ]
        with contextlib.suppress(psutil.AccessDenied):
            words += [f"{process.num_fds()} open files", f"in {escape(process.cwd())}"]
    except psutil.Error:
        return "  now: it has ended\n"
    return f"  now: {', '.join(words)}\n"
