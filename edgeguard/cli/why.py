"""`edgeguard why PATH|:PORT|PID`: what the policy says about one thing."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError, DaemonSilent


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="PATH|:PORT|PID", help="a file, a port (:4444, 4444/tcp), a process id")


def run(given: argparse.Namespace, console: Console) -> int:
    subject = given.subject
    if "/" in subject and not subject[0].isdigit() and not subject.startswith(("/", "tcp/", "udp/")):
        subject = os.path.abspath(subject)
    try:
        answers = _asked(console, subject)
    except DaemonSilent as silent:
        if not subject.startswith("/") and not os.path.lexists(subject):
            raise
        return _offline(console, os.path.abspath(subject), silent)
    console.answers(answers, lambda item: pages.why(item, console.columns, console.color))
    if console.form == "text" and subject.isdigit():
        console.text(process_now(int(subject)))
    return 0


def _asked(console: Console, subject: str) -> list[dict[str, Any]]:
    """A bare name may be anything; where nothing is called so, and a file here is, that one is meant."""
    try:
        return console.ask_once("Why", subject=subject).get("answers") or []
    except ControlError as error:
        if not error.name.endswith("NoSuchSubject") or "/" in subject or not os.path.lexists(subject):
            raise
    return console.ask_once("Why", subject=os.path.abspath(subject)).get("answers") or []


def _offline(console: Console, path: str, silent: DaemonSilent) -> int:
    """Without the daemon: what the policy files of this device say, which need not be what is in force."""
    from edgeguard.cli import policy  # reads TOML, which the daemon's answer makes unnecessary

    paths = console.settings.paths
    console.remark(f"edgeguard: the daemon does not answer: {escape(str(silent))}")
    console.remark("edgeguard: this is what the policy files say; what is in force may be another policy")
    policy.tell_deciding(console, [paths.vendor_policy, paths.site_policy], [path])
    return 3


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
