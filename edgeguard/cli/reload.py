"""`edgeguard reload`: read policy and settings again. A wrong policy is refused and the standing one stays."""

from __future__ import annotations

import argparse

from edgeguard.cli.console import Console
from edgeguard.cli.words import count


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def run(given: argparse.Namespace, console: Console) -> int:
    del given
    answer = console.ask_once("Reload")
    if console.form != "text":
        console.json({"v": 1, **answer})
    else:
        rules, waivers = count(answer.get("rules"), "rule"), count(answer.get("waivers"), "waiver")
        console.text(f"r{answer.get('revision')}: {rules}, {waivers}.")
    return 0
