"""`edgeguard status`: how is this device? Also when the daemon does not answer, and then above all."""

from __future__ import annotations

import argparse
import os
from typing import Any

from edgeguard.cli import render
from edgeguard.cli.console import Console
from edgeguard.cli.words import EXIT
from edgeguard.control import call, load
from edgeguard.errors import DaemonSilent, DecodeError

STATUS_MAX = 256 * 1024  # bytes of status.json; eight findings with long names have 60 KiB
SYSTEMCTL = "/usr/bin/systemctl"
SYSTEMCTL_S = 2.0  # seconds: a hung systemd must not hang the answer


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="exit 1 also while learning")
    parser.add_argument("--waited", action="store_true", help=argparse.SUPPRESS)  # the launcher has asked in vain


def run(given: argparse.Namespace, console: Console) -> int:
    if given.waited:
        return _silent(console, "no answer in time")
    try:
        answer = _ask(console)
    except DaemonSilent as error:
        return _silent(console, str(error))
    text = str(answer.get("text", ""))
    if console.form == "text":
        console.text(text)
    elif not console.quiet:
        console.json(load(text.encode("utf-8", "surrogatepass")))
    code = answer.get("code")
    code = code if isinstance(code, int) and 0 <= code <= 3 else 3
    return 1 if given.strict and code == 0 and "LEARNING" in text[:80] else code


def _ask(console: Console) -> dict[str, Any]:
    """The one answer that is not escaped again: it is a screen, ready to print, with its colours."""
    parameters = {
        "width": console.columns,
        "height": console.height,
        "color": console.color,
        "unicode": console.unicode,
        "format": "text" if console.form == "text" else "json",
    }
    return list(call(console.socket, "Status", parameters))[-1]


def _silent(console: Console, reason: str) -> int:
    last = last_status(console.runtime)
    service, words = ("", "") if console.runtime != "/run/edgeguard" else service_state()
    if console.form != "text":
        console.json({"v": 1, "verdict": "UNKNOWN", "reason": reason, "last": last, "service": service})
        return EXIT["UNKNOWN"]
    told = "the daemon does not answer"
    if "no answer in time" in reason:
        told += " (waited 2 s)"
    elif "No such file" in reason or "refused" in reason:
        told = "the daemon is not running"
    console.text(
        render.unknown(told, last, service, words, console.now, console.columns, console.color, console.unicode)
    )
    return EXIT["UNKNOWN"]


def last_status(runtime: str) -> dict[str, Any] | None:
    """What the daemon published last; None if it is not there or not ours."""
    try:
        fd = os.open(f"{runtime}/status.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            data = file.read(STATUS_MAX + 1)
        document = load(data) if len(data) <= STATUS_MAX else None
    except (OSError, DecodeError):
        return None
    return document if document is not None and document.get("v") == 1 else None


def service_state() -> tuple[str, str]:
    """What systemd says about the service, and the last line of its journal; empty where there is no systemd."""
    if not os.path.isdir("/run/systemd/system"):
        return "", ""
    shown = _output([SYSTEMCTL, "show", "edgeguard.service", "--property=LoadState,ActiveState,SubState,NRestarts"])
    fields = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if not fields:
        return "", ""
    if fields.get("LoadState") == "not-found":
        return "edgeguard.service: not installed", ""
    restarts = fields.get("NRestarts", "0")
    tail = f", {restarts} restarts" if restarts not in {"0", ""} else ""
    state = f"edgeguard.service: {fields.get('ActiveState')} ({fields.get('SubState')}){tail}"
    words = _output(["/usr/bin/journalctl", "-u", "edgeguard.service", "-n1", "-o", "cat", "-q", "--no-pager"])
    return state, words.strip()[:400]


def _output(command: list[str]) -> str:
    import subprocess  # only here, and only when the daemon is silent

    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=SYSTEMCTL_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:4096].decode("utf-8", "replace")
