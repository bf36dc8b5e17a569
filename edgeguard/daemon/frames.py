"""What a helper says to the daemon: frames of [length u32, CBOR map] on its standard output; both halves.

The helper is our own program, but it reads the outside world: the daemon decodes strictly and with a bound.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any

from edgeguard.codec import cbor
from edgeguard.codec.values import columns_from_plain, columns_to_plain, from_plain, to_plain
from edgeguard.errors import DecodeError
from edgeguard.model import NOBODY, Actor, Observation, Origin, Status, Watch

FRAME_MAX = 8 * 1024 * 1024  # bytes; the largest is a verified baseline with the references of thousands of packages
BATCH = 64  # observations in a frame
BATCH_S = 0.2  # and how long one may wait for company
LENGTH = struct.Struct("<I")


def swept_path(state: str) -> str:
    """Where a helper leaves what a whole sweep saw."""
    return f"{state}/observed.db.swept"


def pack(message: dict[str, Any]) -> bytes:
    body = cbor.encode(message)
    return LENGTH.pack(len(body)) + body


class Unpacker:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Messages completed by `data`. Raises DecodeError when the stream is not ours."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > FRAME_MAX:
                raise DecodeError(f"helper frame of {length} bytes, at most {FRAME_MAX}")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            message = cbor.decode(body, depth=16, size=FRAME_MAX)
            if not isinstance(message, dict):
                raise DecodeError("helper frame: expected a map")
            messages.append(message)
        return messages


class Out:
    """Frames to the daemon. A daemon that is gone ends the helper."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._batch: list[Any] = []
        self._since = 0.0

    def say(self, message: dict[str, Any]) -> None:
        data = memoryview(pack(message))
        while data:
            data = data[os.write(self._fd, data) :]

    def observe(self, observation: Observation) -> None:
        if not self._batch:
            self._since = time.monotonic()
        self._batch.append(observation_to_plain(observation))
        if len(self._batch) >= BATCH or time.monotonic() - self._since > BATCH_S:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self.say({"observations": self._batch})
            self._batch = []

    def progress(self, phase: str, done: int, total: int | None, size: int, eta_s: int | None) -> None:
        self.flush()
        self.say({"progress": {"phase": phase, "done": done, "total": total, "bytes": size, "eta_s": eta_s}})


def observation_to_plain(observation: Observation) -> list[Any]:
    actor = observation.actor
    return [
        observation.kind,
        to_plain(observation.subject),
        columns_to_plain(observation.columns),
        observation.at,
        int(observation.status),
        int(observation.origin),
        to_plain(observation.note),
        None if actor == NOBODY else [to_plain(item) for item in actor[:-1]],  # no sweep knows parents
    ]


def observation_from_plain(plain: Any) -> Observation:
    try:
        kind, subject, columns, at, status, origin, note, actor = plain
        return Observation(
            str(kind),
            str(from_plain(subject)),
            columns_from_plain(columns),
            int(at),
            Status(status),
            Origin(origin),
            NOBODY if actor is None else Actor(*(from_plain(item) for item in actor)),  # type: ignore[arg-type]  # own helper's words, told apart by position
            str(from_plain(note)),
        )
    except (TypeError, ValueError) as error:
        raise DecodeError(f"helper observation: {error}") from error


def watches_to_plain(watches: tuple[Watch, ...]) -> list[list[Any]]:
    return [[list(value) if isinstance(value, tuple) else value for value in watch] for watch in watches]


def watches_from_plain(plain: list[list[Any]]) -> tuple[Watch, ...]:
    return tuple(_watch(row) for row in plain)


def _watch(row: list[Any]) -> Watch:
    """One that lacks the newest keys has their defaults."""
    values = [tuple(value) if isinstance(value, list) else value for value in row]
    return Watch._make([*values, *Watch("", "")[len(values) :]])
