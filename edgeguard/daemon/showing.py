"""Showing how things stand: the facts behind `status`, gathered from the rooms, and when they are published.

What the status document looks like is in `status`; how the files are written is in `publish`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from edgeguard.cli.text import escape
from edgeguard.daemon.judging import Judging
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.daemon.publish import REFRESH_S, publish, status_line
from edgeguard.daemon.river import River
from edgeguard.daemon.rounds import Rounds
from edgeguard.daemon.sensing import Sensing, now_ms
from edgeguard.daemon.status import Facts, document
from edgeguard.daemon.storage import Storage
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.uplinks import Uplinks
from edgeguard.sensors.health import Health
from edgeguard.settings import Settings, transport

PUBLISH_WAIT_S = 0.1  # several changes make one status


class Showing:
    """Reads from every room, changes none. `said` hears the verdict line whenever it may be another."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        said: Callable[[str], None],
        *,
        judging: Judging,
        river: River,
        sensing: Sensing,
        rounds: Rounds,
        telling: Telling,
        uplinks: Uplinks,
        storage: Storage,
        health: Health,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._said = said
        self._judging = judging
        self._river = river
        self._sensing = sensing
        self._rounds = rounds
        self._telling = telling
        self._uplinks = uplinks
        self._storage = storage
        self._health = health
        self.started = now_ms()
        self.checked: int | None = None  # when anything was last observed
        self._timer: Timer | None = None
        self._cpu = (time.process_time(), time.monotonic())
        self._cpu_percent: float | None = None

    def changed(self) -> None:
        """Something that status shows may be another: publish soon, once."""
        if self._timer is None:
            self._timer = self._loop.later(PUBLISH_WAIT_S, self.publish)

    def publish(self) -> None:
        self._timer = None
        status = self.status()
        publish(self._settings.paths.runtime, status)
        self._said(status_line(status))

    def refresh(self) -> None:
        """Publish what did not change, too: status.json is valid for a time only."""
        now_cpu, now_mono = time.process_time(), time.monotonic()
        cpu, mono = self._cpu
        if now_mono - mono > REFRESH_S / 2:  # of the start alone it would be no figure to judge by
            self._cpu_percent = round(100 * (now_cpu - cpu) / (now_mono - mono), 2)
            self._cpu = (now_cpu, now_mono)
        self.publish()

    def status(self) -> dict[str, Any]:
        force = self._judging.in_force
        return document(self._facts(), self._river.ledger, force.baseline if force else None)

    def _facts(self) -> Facts:
        uplink = self._uplinks.status
        force = self._judging.in_force
        configured = self._uplinks.configured
        return Facts(
            name=self._settings.name or socket.gethostname(),
            fleet=self._settings.fleet,
            now=now_ms(),
            started=self.started,
            checked=self.checked,
            files_watched=force.baseline.files.entries if force and force.baseline.files else 0,
            files_checked=self._rounds.checked,
            counts=self._counts(),
            packages_incomplete=sum(finding.kind == "package" for finding in self._river.ledger.open()),
            packages_changed=self._packages_changed(),
            sequence=self._telling.sequence,
            log_since=None,
            log_error=self._telling.failing,
            spool={
                **self._storage.document(),
                "identity": self._settings.identity.kind,
                "identity_error": escape(self._telling.identity),
            },
            uplink_state="OFF" if not configured else "OK" if uplink.ok else "WARN",
            uplink_waiting=self._uplinks.waiting,
            uplink_last=uplink.last_sent,
            uplink_error=uplink.error,
            uplink_transport=transport(self._settings.uplink.url),
            clock_synchronised=self._health.clock_synchronised(),
            trust=force.trust if force else "local",
            signer=force.signer if force else "",
            mode=self._judging.mode.value,
            learning=self._judging.learning,
            problems=tuple(self._health.problems()),
            cpu_percent=self._cpu_percent,
        )

    def _counts(self) -> dict[str, int]:
        processes = self._sensing.sensor("processes")
        running = getattr(processes, "running", 0)
        return {**self._sensing.counts, "process": running() if callable(running) else running}

    def _packages_changed(self) -> int | None:
        try:
            return os.stat(f"{self._settings.paths.root}/var/lib/dpkg/status").st_mtime_ns // 1_000_000
        except OSError:
            return None
