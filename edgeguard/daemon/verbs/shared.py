"""What verbs of all kinds need: which finding is meant, who asks, how progress is passed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeguard.cli.text import escape
from edgeguard.control_server.client import Request
from edgeguard.daemon.guard import Guard
from edgeguard.errors import ControlError
from edgeguard.model import Finding


def one(guard: Guard, text: str) -> Finding:
    """The finding of that id or its beginning. Raises ControlError: NoSuchFinding, Ambiguous."""
    found = guard.river.ledger.find(text)
    if not found:
        raise ControlError("NoSuchFinding", f"no finding {escape(text)}")
    if len(found) > 1:
        names = ", ".join(finding.id for finding in found[:5])
        raise ControlError("Ambiguous", f"{escape(text)} could be {names}")
    return found[0]


def person(guard: Guard, request: Request) -> str:
    """The person behind `sudo`, as far as the login tells."""
    peer = request.peer
    uid = peer.login_uid if peer.login_uid is not None else peer.uid
    return guard.actors.user(uid) or f"uid {uid}"


def passing(request: Request) -> Callable[[dict[str, Any]], None]:
    """Pass progress on to whoever asked."""

    def progress(words: dict[str, Any]) -> None:
        request.reply({"progress": words}, continues=True)

    return progress
