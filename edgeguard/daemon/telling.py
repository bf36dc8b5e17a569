"""Telling: every change of the ledger and every state of our own becomes a record, a journald entry and, when it
matters, a sealed segment on its way within moments.

Records are durable after a commit, are signed by `edgeguard-seal` in batches, and leave with the uplink. A disk that
does not take them is said in health and tried again; nothing is dropped without a count.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.errors import SpoolError
from edgeguard.linux.procfs import Procfs
from edgeguard.model import Columns, Observation, Severity
from edgeguard.records import compose
from edgeguard.records.compose import Moment
from edgeguard.records.registry import Stream
from edgeguard.records.spool import Spool
from edgeguard.records.wire import Record

SEAL_S = 120.0
KEY_S = 3600  # at least so often the sealer runs: it replaces the key of an epoch that has sealed something
RECENT_MAX = 200  # records kept for `edgeguard log`
RETRY_S = 5.0
SOON_S = 1.0  # until what is due and could not be begun is tried again
AGAIN_S = 60.0  # between two tries to seal, at most
EARLY_S = 0.05  # seconds by which two timers are the same

Clock = Callable[[], int]  # registry.Clock: how far the wall clock can be believed


def boot_ms() -> int:
    """Milliseconds since boot, time asleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> bytes:
    """Which run of the device this is. Containers share the kernel's word for it; each start of one has a new init."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = int(file.read().strip().replace("-", ""), 16)
    except (OSError, ValueError):
        kernel = time.time_ns() // 1_000_000 - boot_ms()
    return (kernel ^ (Procfs("/").start(1) or 0)).to_bytes(16, "big")


class Telling:
    """The one way out for records."""

    def __init__(
        self,
        loop: Loop,
        spool: Spool,
        helpers: Helpers,
        seal_program: str,
        clock: Clock,
        report: Callable[[str, str], None],  # (subject, detail): "" detail means all is well again
        sealed: Callable[[dict[str, Any]], None],
        heartbeat_s: int = KEY_S,
    ) -> None:
        self._loop = loop
        self.spool = spool
        self._helpers = helpers
        self._seal_program = seal_program
        self._clock = clock
        self._report = report
        self._sealed = sealed
        self._commit_timer: Timer | None = None
        self._seal_timer: Timer | None = None
        self._asked_again = False
        self._audit_again = False
        self._heartbeat_s = heartbeat_s
        self._started = False  # has a sealer run since this start? The first begins an epoch
        self._heads: list[tuple[int, int, bytes]] = []  # newest sealed segments, as the last sealer named them
        self.recent: deque[tuple[int, int, Record]] = deque(maxlen=RECENT_MAX)  # (stream, sequence, record)
        self.followers: list[Callable[[int, int, Record], None]] = []
        self.error = ""
        self.identity = ""  # why the identity key did not sign when it was asked last
        self._unsealed = ""  # why what is durable cannot become segments, where the disk is the reason
        self.sequence = 0  # newest record of the stream of findings that is durable
        self.manifest = ""  # path of the file manifest in force: what paths in records may refer to

    def open(self) -> None:
        self._guard(self.spool.open)
        for name in self.spool.damaged:
            self.record(compose.drop(0, "damaged", self.moment(), name=name))
        self.spool.told()
        self._later_heartbeat()
        self._later_key()

    @property
    def failing(self) -> str:
        """Why records are not stored, or not sealed, as they should be; "" when all is well."""
        return self.error or self._unsealed

    def moment(self) -> Moment:
        return Moment(boot_ms(), time.time_ns() // 1_000_000, self._clock())

    # -- what is told

    def state(
        self,
        what: str,
        text: str = "",
        *,
        subject: str = "",
        finding: str = "",
        severity: Severity = Severity.INFORMATIONAL,
        columns: Columns | None = None,
    ) -> int:
        """Record something about EdgeGuard itself; returns the sequence number in stream 0."""
        return self.record(
            compose.state(
                what, self.moment(), text, subject=subject, finding=finding, severity=severity, columns=columns
            )
        )

    def package(self, package: dict[str, Any], severity: Severity) -> int:
        """Record what became of one package's files."""
        return self.record(compose.upgrade(package, self.moment(), severity))

    def observation(self, seen: Observation, expected: Columns | None) -> int:
        return self.record(compose.observation(seen, self.moment(), expected))

    def record(self, record: Record) -> int:
        """Take a record; it is durable as soon as its stream demands. Returns its sequence number."""
        sequence = 0

        def append() -> None:
            nonlocal sequence
            _, sequence = self.spool.append(record)

        self._guard(append)
        self.recent.append((record.stream, sequence, record))
        for follower in list(self.followers):  # one that has gone takes itself off the list
            follower(record.stream, sequence, record)
        self._plan()
        return sequence

    # -- making it durable and sealing it

    def _guard(self, act: Callable[[], object]) -> bool:
        """Do something with the spool; its failure is health, not an end."""
        try:
            act()
        except SpoolError as error:
            # Said once: the report becomes a record itself, and that one cannot be stored either.
            if str(error) != self.error:
                self.error = str(error)
                self._report("spool", self.error)
            if self._commit_timer is None:
                self._commit_timer = self._loop.later(RETRY_S, self._commit)
            return False
        if self.error and not self.spool.status.queued:
            self.error = ""
            self._report("spool", "")
        return True

    def _plan(self) -> None:
        due = self.spool.commit_due(boot_ms())
        if due is None:
            return
        if self._commit_timer is not None:
            if self.error or self._commit_timer.due <= time.monotonic() + due / 1000:
                return
            self._commit_timer.cancel()  # a metric may wait a minute, what came after it may not
        self._commit_timer = self._loop.later(due / 1000, self._commit)

    def _commit(self) -> None:
        self._commit_timer = None
        if self._guard(self.spool.commit):
            self.sequence = self.spool.status.next[Stream.FINDINGS] - 1
            self.seal()
        self._plan()

    def seal(self, *, force: bool = False) -> None:
        """Start the sealer if something is due; it tells when it is done."""
        if "seal" in self._helpers.running:
            return
        ready = False

        def rotate() -> None:
            nonlocal ready
            ready = self.spool.rotate(boot_ms(), force=force)

        if not self._guard(rotate):
            return  # the commit that is tried again leads here again
        if ready:
            self.run_sealer()
        else:
            self._later_seal(SOON_S)

    def _later_heartbeat(self) -> None:
        self._loop.later(self._heartbeat_s, self._heartbeat, slack=self._heartbeat_s / 60)

    def _heartbeat(self) -> None:
        """A sign of life, sealed at once with whatever waits: no write more than the flush that is due anyway."""
        self.record(compose.heartbeat(self.moment(), self._heads, self._heartbeat_s))
        self.seal(force=True)
        self._later_heartbeat()

    def _later_key(self) -> None:
        """Where heartbeats are rarer than keys change."""

        def turn() -> None:
            self.run_sealer()
            self._later_key()

        if self._heartbeat_s > KEY_S:
            self._loop.later(KEY_S, turn, slack=60.0)

    def run_sealer(self, *, audit: bool = False) -> None:
        """Also without a full journal: receipts in the inbox want to be checked. `audit`: verify every segment."""
        answer: dict[str, Any] = {}
        started = self._helpers.start(
            "seal",
            {
                "audit": audit,
                "started": not self._started,
                "clock": int(self._clock()),
                **({"manifest": self.manifest} if self.manifest else {}),
            },
            answer.update,
            lambda error: self._seal_done(answer, error),
            timeout_s=SEAL_S,
            program=self._seal_program,
        )
        if not started:  # the one that runs may have looked into the inbox already
            self._asked_again = True
            self._audit_again = self._audit_again or audit

    def _seal_done(self, answer: dict[str, Any], error: str) -> None:
        if error:
            answer["error"] = error
        elif not answer.get("busy"):
            self._started = True
            self._heads = [(stream, sequence, digest) for stream, sequence, digest in answer.get("heads", [])]
        if not answer.get("busy"):
            self.identity = str(answer.get("identity", ""))
        self._unsealed = f"sealing: {error}" if error and answer.get("storage") else ""
        self._guard(self.spool.refresh)
        for row in answer.get("quarantined", []):
            lost = compose.drop(
                row["stream"], "damaged", self.moment(), first=row["seq"], last=row["seq"], name=row["name"]
            )
            self.record(lost)
        self._sealed(answer)
        if self._seal_timer is not None:
            self._seal_timer.cancel()
        self._later_seal(EARLY_S)
        self._plan()
        if self._asked_again:
            audit, self._asked_again, self._audit_again = self._audit_again, False, False
            self.run_sealer(audit=audit)

    def _later_seal(self, least: float) -> None:
        """When the oldest record that waits has waited long enough, or what could not be sealed is to be tried again.
        Where nothing waits nobody is woken: what comes leads here when it is durable. `least`: seconds, where it is
        time already."""
        wait = self.spool.seal_in(boot_ms())
        if wait is None:
            return
        seconds = wait / 1000 or least
        if self.spool.status.waiting:
            seconds = min(seconds, AGAIN_S)
        if self._seal_timer is not None and self._seal_timer.callback is not None:
            if self._seal_timer.due <= time.monotonic() + seconds + EARLY_S:
                return  # that one is in time, and looks again
            self._seal_timer.cancel()
        self._seal_timer = self._loop.later(seconds, self.seal, slack=seconds / 60)

    def close(self) -> None:
        """Last words are made durable; they are sealed at the next start."""
        with contextlib.suppress(SpoolError):
            self.spool.commit()
            self.spool.close()
