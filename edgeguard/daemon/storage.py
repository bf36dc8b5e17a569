"""Our own state on its disk: whether it lasts, how much room records have, and what writing them costs the flash."""

from __future__ import annotations

import os
from typing import Any

from edgeguard.linux import storage
from edgeguard.linux.storage import Medium
from edgeguard.records.registry import Stream
from edgeguard.records.spool import Spool

LASTING = {
    "memory": "in memory ({fstype}): a restart loses it",
    "overlay": "on an overlay: whether a restart loses it cannot be told from here",
    "unknown": "where it lies cannot be told",
}


class Storage:
    """`status` and metrics read it; the sealer's answers come in by `sealed`."""

    def __init__(self, state: str, spool: Spool) -> None:
        self._state = state
        self._spool = spool
        self._medium: Medium = storage.medium(state)
        self._sealed = 0  # bytes that the sealer wrote, whole blocks
        self.bytes = 0  # that sealed segments take
        self.limit = 0  # that they may take; 0: not known yet
        self.lost: dict[int, int] = {}  # segments let go undelivered and not passed by the collector, by stream

    def sealed(self, answer: dict[str, Any]) -> None:
        if "bytes" not in answer:
            return
        self.bytes, self.limit = answer["bytes"], answer["limit"]
        self._sealed += answer["written"]
        self.lost = {}
        for first, last, stream in answer["lost"]:
            self.lost[stream] = self.lost.get(stream, 0) + last - first + 1

    def fleeting(self) -> str:
        """Why nothing of it may be called durable; "" when it may."""
        try:
            if os.statvfs(self._state).f_flag & os.ST_RDONLY:
                return "on a read-only disk: records are kept in memory"
        except OSError as error:
            return f"not there: {error.strerror}"
        return LASTING.get(self._medium.kind, "").format(fstype=self._medium.fstype)

    @property
    def written(self) -> int:
        """Bytes that records cost the disk since we started, whole blocks."""
        return self._spool.written + self._sealed

    @property
    def disk_written(self) -> int | None:
        """Bytes that anybody wrote to the device since it started; None where there is no device of blocks."""
        return storage.bytes_written(self._medium.device) if self._medium.device else None

    def document(self) -> dict[str, Any]:
        """For the status document; keys are stable."""
        device = storage.device_name(self._medium.device) if self._medium.device else ""
        return {
            "durable": not self.fleeting(),
            "fleeting": self.fleeting(),
            "bytes": self.bytes,
            "limit": self.limit or None,
            "let_go": {Stream(stream).name.lower(): count for stream, count in sorted(self.lost.items())},
            "written": self.written,
            "device": device,
            "device_written": self.disk_written,
        }
