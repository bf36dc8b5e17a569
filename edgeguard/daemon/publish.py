"""What anyone may read without asking: status.json and metrics.prom, replaced atomically; and the line for systemd.

They are written when something changed and otherwise just often enough to stay valid.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

VALID_MS = 180_000  # a reader of status.json that is older than this knows that nobody is watching
REFRESH_S = 60.0


def replace_file(path: str, data: bytes, mode: int = 0o644, *, whole: bool = False) -> None:
    """Put `data` in place of `path` so that a reader sees the old or the new, never a part.

    `whole`: also a reader after a power cut. In /run, which no power cut outlives, nobody needs that.
    """
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)
        left = memoryview(data)
        while left:  # a disk that is nearly full takes a part, and says so only the next time
            left = left[os.write(fd, left) :]
        if whole:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def publish(runtime: str, status: dict[str, Any]) -> None:
    """Write both files. A full or read-only /run is not our death: the control socket still answers."""
    with contextlib.suppress(OSError):
        replace_file(f"{runtime}/status.json", json.dumps(status, separators=(",", ":")).encode() + b"\n")
        replace_file(f"{runtime}/metrics.prom", metrics(status).encode())


def metrics(status: dict[str, Any]) -> str:
    """node_exporter textfile format; no timestamps, no labels from outside."""
    verdicts = {"OK": 0, "WARN": 1, "CRIT": 2}
    areas = status["areas"]
    rows = [
        ("edgeguard_verdict", "0 OK, 1 WARN, 2 CRIT, 3 unknown or learning", verdicts.get(status["verdict"], 3)),
        ("edgeguard_findings_open", "open findings", status["open"]),
        ("edgeguard_findings_suppressed", "findings covered by a waiver or an acceptance", status["suppressed"]),
        ("edgeguard_files_watched", "files with a reference value", areas["files"]["watched"] or 0),
        ("edgeguard_listeners", "listening sockets", areas["ports"]["listening"] or 0),
        (
            "edgeguard_uplink_waiting",
            "sealed segments without a receipt",
            areas["uplink"]["waiting"],
        ),
        ("edgeguard_log_sequence", "records in the stream of findings", areas["log"]["sequence"]),
        ("edgeguard_resident_bytes", "resident memory of the daemon", status["daemon"]["rss"]),
    ]
    if status["policy"]:
        rows.append(("edgeguard_baseline_revision", "revision in force", status["policy"]["revision"]))
    return "".join(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value}\n" for name, text, value in rows)


def status_line(status: dict[str, Any]) -> str:
    """One line for `systemctl status`."""
    if status["learning"]:
        return f"LEARNING {status['learning']['percent']} %: {status['learning']['files']} files so far"
    if not status["open"]:
        return f"{status['verdict']}: nothing open"
    names = ", ".join(finding["id"] for finding in status["findings"][:3])
    noun = "finding" if status["open"] == 1 else "findings"
    return f"{status['verdict']}: {status['open']} open {noun} ({names}{', ...' if status['open'] > 3 else ''})"
