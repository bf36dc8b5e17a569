"""Verb `deep` of the helper: one slice of the deep sweep, for whatever the machine has left over."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from edgeguard.daemon.frames import Out, watches_from_plain
from edgeguard.daemon.sweeping import now_ms, opened_references, replacing
from edgeguard.errors import DecodeError
from edgeguard.linux import priority
from edgeguard.sensors import deep as sweeps
from edgeguard.sensors.deep import POSITION_MAX, Position
from edgeguard.settings import Settings


def position_path(state: str) -> str:
    """Where the next slice begins. Lost or damaged, a new round begins."""
    return f"{state}/deep.cbor"


def deep(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """The verb. Answers with observations and {"deep": {...}}; what was told is told before the position is kept.

    Where the disk does not take the position, it is in the answer, with {"problem": why}, and comes back as "position"
    of the next request: a full disk must not keep the rest from being read.
    """
    priority.idle()
    state = settings.paths.state
    with contextlib.ExitStack() as stack:
        manifest = stack.enter_context(opened_references(state, request))
        try:
            observed = stack.enter_context(open(f"{state}/observed.db", "rb"))
        except FileNotFoundError:  # the first sweep is not over yet
            out.say({"deep": {"files": 0, "bytes": 0, "emitted": 0, "unreadable": 0, "complete": False}})
            return
        given = request.get("position")
        try:
            done = sweeps.read_slice(
                watches_from_plain(request["watches"]),
                settings.paths.root,
                manifest,
                observed,
                _position(state) if given is None else Position.from_cbor(given),
                now_ms(),
                settings.budget.deep_s,
                out.observe,
                slices=request["slices"],
                seconds=request["seconds"],
                hash_file_max=settings.budget.hash_file_max,
            )
        except DecodeError:
            # Sweeps that find a directory unchanged do not read what is kept of its files, and would never mend it.
            with contextlib.suppress(OSError):
                os.unlink(f"{state}/observed.db")
            raise
    out.flush()
    facts = {"files": done.files, "bytes": done.bytes_read, "emitted": done.emitted, "unreadable": done.unreadable}
    answer: dict[str, Any] = {**facts, "complete": done.complete}
    position = done.position.to_cbor()
    try:
        with replacing(position_path(state)) as file:
            file.write(position)
    except OSError as error:
        answer |= {"position": position, "problem": error.strerror or str(error)}
    out.say({"deep": answer})


def _position(state: str) -> Position:
    try:
        with open(os.open(position_path(state), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return Position.from_cbor(file.read(POSITION_MAX))
    except OSError:
        return Position()
