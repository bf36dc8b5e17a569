"""A system that does not run, looked at in its root directory: a mounted image, an unpacked root.

Nothing of it is executed, so its architecture does not matter, and nothing of this machine is looked at: what only
exists while a system runs (ports, processes, devices, the kernel's settings) is named and left out. Symlinks stay
inside the root (`linux/inside`). Files are walked by `sweep`; here is what else can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from edgeguard.linux.inside import inside
from edgeguard.model import Columns, Observation, Status
from edgeguard.sensors import Context, ldcache, sshd
from edgeguard.sensors.accounts import Accounts
from edgeguard.sensors.packages import STATUS, Packages
from edgeguard.sensors.snapshot import WHOLE_KIND

NOT_IN_AN_IMAGE: Mapping[str, str] = {
    "listener": "listening ports",
    "process": "running programs",
    "usb": "USB devices",
    "sysctl": "kernel settings",
    "module": "loaded modules",
    "mount": "mounts",
    "health": "EdgeGuard itself",
}
"""Kind -> what it is about. These exist only while a system runs."""


class Offline:
    """`notes`: what was not there to be looked at; `unread`: what was there and could not be read."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.notes: list[str] = []
        self.unread: list[str] = []

    def observe(self, now: int) -> Iterator[Observation]:
        """Accounts, keys, packages, settings of sshd, and where libraries are looked for, as they are in the image."""
        for seen in self._all(now):
            if seen.status is Status.UNREADABLE and seen.subject == WHOLE_KIND:
                self.unread.append(f"{seen.kind}: {seen.note}")
            yield seen

    def _all(self, now: int) -> Iterator[Observation]:
        context = Context(self._root)
        if self._there("/etc/passwd", "no accounts and no keys of theirs"):
            accounts = Accounts(context)
            self.unread += accounts.start().blind
            yield from accounts.observe(now)
        if self._there(STATUS, "no packages"):
            yield from Packages(context).observe(now)
        yield from sshd.observe(self._root, now)
        yield from ldcache.Directories().observe(self._root, now)

    def _there(self, path: str, without: str) -> bool:
        if os.path.lexists(inside(self._root, path)):
            return True
        self.notes.append(f"there is no {path}: {without}")
        return False


def references(observations: Iterable[Observation]) -> dict[str, dict[str, Columns | None]]:
    """The reference values in what was seen: what a sensor declares as such."""
    kinds = {**Accounts.kinds, **Packages.kinds, "sshd": sshd.KIND, "library_dir": ldcache.KIND}
    found: dict[str, dict[str, Columns | None]] = {kind: {} for kind in kinds}
    for seen in observations:
        if seen.status is Status.PRESENT:
            kept = [name for name, column in kinds[seen.kind].items() if column.reference]
            found[seen.kind][seen.subject] = {name: seen.columns[name] for name in kept if name in seen.columns}
    return found
