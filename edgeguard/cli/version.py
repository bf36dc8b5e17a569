"""`edgeguard version`: of this program, and of the daemon if it answers."""

from __future__ import annotations

import argparse

from edgeguard import __version__
from edgeguard.cli.console import Console
from edgeguard.errors import ControlError, DaemonSilent


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def run(given: argparse.Namespace, console: Console) -> int:
    del given
    try:
        daemon = str(console.ask_once("Version").get("version"))
    except (DaemonSilent, ControlError) as error:
        daemon = ""
        console.remark(f"(daemon: {error})")
    if console.form != "text":
        console.json({"v": 1, "version": __version__, "daemon": daemon or None})
    else:
        console.text(f"edgeguard {__version__}" + (f", daemon {daemon}" if daemon else ""))
    return 0
