"""`edgeguard explain ID|CODE`: what it means, who did it, how to fix it. A code is explained without the daemon."""

from __future__ import annotations

import argparse
from typing import Any

from edgeguard.cli import pages
from edgeguard.cli.console import Console
from edgeguard.errors import ControlError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID|CODE", help="a finding (F-7K2M) or a kind of finding (EG-FILE-002)")


def run(given: argparse.Namespace, console: Console) -> int:
    name = given.id.strip().upper()
    if name.startswith("EG-"):
        return _code(name, console)
    answer = console.ask_once("Explain", id=given.id)
    if console.form == "text":
        code = _codes().get(str(answer["finding"].get("code")))
        console.text(pages.explain(answer, code, console.now, console.columns, console.color))
    else:
        console.json({"v": 1, **answer})
    return 0


def _code(name: str, console: Console) -> int:
    code = _codes().get(name)
    if code is None:
        raise ControlError("NoSuchCode", f"there is no code {name}")
    if console.form == "text":
        console.text(pages.explain_code(name, code, console.columns))
    else:
        document: dict[str, Any] = {"v": 1, "code": name}
        for field in ("title", "severity", "rationale", "fix", "references", "attack"):
            value = getattr(code, field)
            document[field] = getattr(value, "name", value).lower() if field == "severity" else value
        console.json(document)
    return 0


def _codes() -> Any:
    from edgeguard import codes  # reads TOML: only for this verb

    return codes.load()
