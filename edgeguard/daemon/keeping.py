"""The ledger on disk: read once at the start, replaced as a whole soon after a change.

Findings are durable as records at once; what is kept here is what this device knows of them after a restart, and what
`edgeguard-act` reads before it does anything. A person's word (accepted, taken back) lies nowhere else: whoever gave it
gets an answer when it is durable.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from edgeguard.daemon.loop import Loop, Timer
from edgeguard.daemon.publish import replace_file
from edgeguard.errors import DecodeError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.linux.durable import sync
from edgeguard.settings import Paths, Settings

SOON_S = 0.5  # after a change; findings themselves are durable as records at once
LATER_S = 300.0  # after a mere repetition, and after the disk did not take it


class Keeping:
    """Holds the one ledger and saves it. `lost`: there was none to read, so everything is to be found anew."""

    def __init__(self, loop: Loop, settings: Settings) -> None:
        self._loop = loop
        self._path = ledger_path(settings.paths)
        self._timer: Timer | None = None
        self.lost = False
        self.ledger = self._load(settings.budget.findings_max)

    def _load(self, findings_max: int) -> Ledger:
        try:
            with open(self._path, "rb") as file:
                return Ledger.from_cbor(file.read(), findings_max)
        except FileNotFoundError:
            pass
        except (OSError, DecodeError) as error:
            # Not fatal: everything is compared with the baseline again, so every deviation is found again.
            sys.stderr.write(f"edgeguardd: {self._path}: {error}; findings are found anew\n")
        self.lost = True
        return Ledger(findings_max)

    def plan(self, *, urgent: bool) -> None:
        """Save soon, or, if nothing hurries, some time."""
        wait = SOON_S if urgent else LATER_S
        if self._timer is not None:
            if not urgent or self._timer.due <= time.monotonic() + wait:
                return
            self._timer.cancel()
        self._timer = self._loop.later(wait, self.save)

    def save(self, *, durable: bool = False) -> bool:
        """False: the disk does not take it. The spool says so, and its records hold the findings meanwhile.

        After a power cut the ledger is an older one or this one, whole. `durable`: it is this one. That costs the
        flash a second commit, so only what somebody waits for asks for it.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            replace_file(self._path, self.ledger.to_cbor(), 0o600, whole=True)
            if durable:
                sync(os.path.dirname(self._path))
        except OSError:
            self.plan(urgent=False)
            return False
        return True


def ledger_path(paths: Paths) -> str:
    return f"{paths.state}/ledger.cbor"


def previous_end(paths: Paths) -> int | None:
    """Seconds since a daemon last kept its ledger or status, None if there never was one."""
    times = []
    for path in (ledger_path(paths), f"{paths.runtime}/status.json"):
        with contextlib.suppress(OSError):
            times.append(os.stat(path).st_mtime)
    return max(0, int(time.time() - max(times))) if times else None
