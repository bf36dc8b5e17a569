"""Verb `deep` of the helper: one slice of the deep sweep, for whatever the machine has left over."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from edgeguard.daemon.frames import Out, watches_from_plain
from edgeguard.daemon.sweeping import now_ms, opened_references, replacing
from edgeguard.linux import priority
from edgeguard.sensors import deep as sweeps
from edgeguard.sensors.deep import POSITION_MAX, Position
from edgeguard.settings import Settings


def position_path(state: str) -> str:
    """Where the next slice begins. Lost or damaged, a new round begins."""
    return f"{state}/deep.cbor"


def deep(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """The verb. Answers with observations and {"deep": {...}}; what was told is told before the position is kept."""
    priority.idle()
    state = settings.paths.state
    with contextlib.ExitStack() as stack:
        manifest = stack.enter_context(opened_references(state, request))
        try:
            observed = stack.enter_context(open(f"{state}/observed.db", "rb"))
        except FileNotFoundError:  # the first sweep is not over yet
            out.say({"deep": {"files": 0, "bytes": 0, "emitted": 0, "unreadable": 0, "complete": False}})
            return
        done = sweeps.read_slice(
            watches_from_plain(request["watches"]),
            settings.paths.root,
            manifest,
            observed,
            _position(state),
            now_ms(),
            settings.budget.deep_s,
            out.observe,
            slices=request["slices"],
            seconds=request["seconds"],
            hash_file_max=settings.budget.hash_file_max,
        )
    out.flush()
    with replacing(position_path(state)) as file:
        file.write(done.position.to_cbor())
    facts = {"files": done.files, "bytes": done.bytes_read, "emitted": done.emitted, "unreadable": done.unreadable}
    out.say({"deep": {**facts, "complete": done.complete}})


def _position(state: str) -> Position:
    try:
        with open(os.open(position_path(state), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return Position.from_cbor(file.read(POSITION_MAX))
    except OSError:
        return Position()
