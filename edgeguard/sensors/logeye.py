"""The files sensor's eye for logs: what became of each, beside what it is. Which files are logs the watches say.

Looks at a log come with its events, and at every sweep at all of them, for the helper that sweeps does not follow
them. The memory is saved now and then, so that flash is not written for every line that is logged.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from stat import S_ISREG

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts
from edgeguard.model import NOBODY, Observation, Origin, Status, Watch
from edgeguard.sensors import logbook
from edgeguard.sensors.logs import KEPT, ROTATED, UNKNOWN, Fate, Logs
from edgeguard.sensors.walk import Walker
from edgeguard.sensors.watching import Plan, literal_root

NEWS_S = 60.0  # until something that is no growth is saved
GROWN_S = 900.0  # the same for growth: what is cut off it while we are away, after a power cut, is not missed
NAMES_MAX = 20_000  # names below a watch that are gone through here: 0.1 s on a small ARM core
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
BOOT_ID = "/proc/sys/kernel/random/boot_id"
FULL = "not every log is followed: there are too many of them ({} are)"


class LogEye:
    """`file` is where the memory lies between two runs."""

    def __init__(self, root: str, file: str) -> None:
        self._root = root
        self._file = file
        self._boot = _boot_id()
        self._logs = Logs(root.rstrip("/"))
        self._saved = time.monotonic()

    def load(self) -> None:
        """What an earlier run kept. Logs in memory do not outlive the boot, and that is no loss."""
        try:
            for path, known in logbook.load(self._file, self._boot):
                self._logs.remember(path, known)
        except (OSError, DecodeError) as error:
            sys.stderr.write(f"edgeguardd: {self._file}: {error}; logs are followed from now on\n")
        self._logs.forget_volatile(self._in_memory())

    def _in_memory(self) -> tuple[str, ...]:
        try:
            table = mounts.read()
        except (OSError, DecodeError):
            return ()
        prefix = self._root.rstrip("/")
        paths = self._logs.paths()
        return tuple(path for path in paths if _fstype(table, prefix + path) in IN_MEMORY)

    @property
    def blind(self) -> tuple[str, ...]:
        return (FULL.format(len(self._logs)),) if self._logs.full else ()

    def followed(self, seen: Observation) -> Observation:
        """The same with what became of the log."""
        if seen.status is Status.PRESENT and seen.columns["type"] != "file":
            return seen  # a directory of logs is none
        fate = self._fate(seen)
        seen = seen._replace(columns={**seen.columns, "continuity": fate.continuity, "lost": fate.lost})
        if fate.away and fate.continuity != KEPT:
            return seen._replace(origin=Origin.DOWN, actor=NOBODY)
        return seen

    def _fate(self, seen: Observation) -> Fate:
        try:
            if seen.status is Status.ABSENT:
                return self._logs.absent(seen.subject)
            if seen.status is Status.PRESENT:
                return self._logs.look(seen.subject)
        except FileNotFoundError:
            return self._logs.absent(seen.subject)
        except OSError:
            pass  # that it cannot be read is told by the look at the file itself
        return Fate(UNKNOWN, 0)

    def settle(self) -> None:
        """A baseline was learned: it has said what is right."""
        self._logs.settle()

    def all(self, plan: Plan) -> Iterator[tuple[str, Watch]]:
        """Every log that is there or that is remembered."""
        found: dict[str, None] = {}
        for watch in plan.watches:
            if not watch.grows:
                continue
            for path in self._there(plan, watch):
                found[path] = None
        for path in (*found, *(path for path in self._logs.paths() if path not in found)):
            watch_or_none = plan.decide(path)
            if watch_or_none is not None and watch_or_none.grows:
                yield path, watch_or_none

    def _there(self, plan: Plan, watch: Watch) -> Iterator[str]:
        literal = literal_root(watch.path)
        if literal == watch.path and not os.path.isdir(self._root.rstrip("/") + literal):
            yield literal
        count = 0
        for visit in Walker(plan, self._root, "" if literal == "/" else literal):
            count += len(visit.names)
            if count > NAMES_MAX:
                self._logs.full = True
                return
            for at, name in enumerate(visit.names):
                if (visit.watch or visit.watches[at]).grows and S_ISREG(visit.stats[at].st_mode):
                    yield f"{visit.path}/{name}"

    def save(self, *, now: bool = False) -> None:
        """If it is time, or `now`. A disk that does not take it is trouble of others; it is tried again."""
        logs = self._logs
        age = time.monotonic() - self._saved
        due = now or (logs.news and age >= NEWS_S) or age >= GROWN_S
        if not due or not (logs.news or logs.grown):
            return
        self._saved = time.monotonic()
        try:
            logbook.save(self._file, self._boot, logs.items())
        except OSError:
            return
        logs.news = logs.grown = False


def is_quiet(seen: Observation) -> bool:
    """Nothing was lost: what the log grew by is nobody's business."""
    return seen.columns.get("continuity") in (KEPT, ROTATED, UNKNOWN)


def any_grow(watches: Sequence[Watch]) -> bool:
    return any(watch.grows for watch in watches)


def _fstype(table: list[mounts.Mount], path: str) -> str:
    mount = mounts.covering(table, path)
    return mount.fstype if mount is not None else ""


def _boot_id() -> bytes:
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)
