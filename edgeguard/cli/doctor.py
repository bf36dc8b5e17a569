"""`edgeguard doctor`: is EdgeGuard itself healthy?"""

from __future__ import annotations

import argparse
from typing import Any

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.cli.status import service_state
from edgeguard.errors import DaemonSilent


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def run(given: argparse.Namespace, console: Console) -> int:
    del given
    silent = False
    try:
        checks = [check for check in console.ask_once("Doctor").get("checks") or [] if isinstance(check, dict)]
    except DaemonSilent as error:
        silent = True
        checks = _without_daemon(str(error))
    if console.form == "json":
        console.json({"v": 1, "checks": checks})
    elif console.form == "jsonl":
        for check in checks:
            console.json(check)
    else:
        console.text(pages.doctor(checks, console.columns, console.color))
    if silent:
        return 3
    return 1 if any(check.get("level") == "FAIL" for check in checks) else 0


def _without_daemon(reason: str) -> list[dict[str, Any]]:
    service, words = service_state()
    checks = [{"level": "FAIL", "name": "daemon", "text": reason, "fix": "sudo systemctl restart edgeguard"}]
    if service:
        level = "OK" if "(running)" in service else "FAIL"
        checks.append({"level": level, "name": "service", "text": service, "fix": "journalctl -u edgeguard -n 20"})
    if words:
        checks.append({"level": "WARN", "name": "last words", "text": words, "fix": ""})
    return checks
