"""Metering: what the device and the guard are busy with, as one record now and then.

Counters are totals since boot or start; `wire` writes their differences. What cannot be read is left out of the record.
"""

from __future__ import annotations

import os

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.river import River
from edgeguard.daemon.sensing import Sensing
from edgeguard.daemon.status import resident_bytes
from edgeguard.daemon.storage import Storage
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.trouble import Trouble
from edgeguard.linux import vitals
from edgeguard.records import compose
from edgeguard.settings import Settings

FIRST_S = 300.0  # after the start: the rush is over, and a device that lives for minutes only is measured once
SLACK = 20  # of the interval, one part in so many: a measurement wakes nobody


class Metering:
    """`observations` are counted by whoever sees them."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        telling: Telling,
        storage: Storage,
        river: River,
        sensing: Sensing,
        trouble: Trouble,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._telling = telling
        self._storage = storage
        self._river = river
        self._sensing = sensing
        self._trouble = trouble
        self.observations = 0

    def begin(self) -> None:
        """One record soon, then one in each interval."""
        every = self._settings.budget.metrics_s
        if every:
            self._loop.later(min(FIRST_S, every), self._measure, slack=every / SLACK)

    def _measure(self) -> None:
        every = self._settings.budget.metrics_s
        self._loop.later(every, self._measure, slack=every / SLACK)
        self._telling.record(compose.metric(self.values(), self._telling.moment()))

    def values(self) -> dict[str, int | None]:
        """By the names of registry.METRIC."""
        root, state = self._settings.paths.root.rstrip("/"), self._settings.paths.state
        disk = self._storage.disk_written
        times = os.times()  # helpers that have ended are in it
        return {
            **vitals.look(root),
            "cpu_ms": round(1000 * sum(times[:4])),
            "rss_kib": resident_bytes() // 1024,
            "listening": self._sensing.counts.get("listener"),
            "disk_free_kib": vitals.disk_free_kib(state),
            "observations": self.observations,
            "lost": self._trouble.lost,
            "open_findings": len(self._river.ledger.open()),
            "spool_bytes": self._storage.bytes,
            "written_kib": self._storage.written // 1024,
            "disk_written_kib": None if disk is None else disk // 1024,
        }
