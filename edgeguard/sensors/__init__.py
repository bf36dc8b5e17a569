"""Sensors yield observations of one part of the system; they never judge and never import another room's logic.

A sensor declares its kinds (with every column described) and its ladder of mechanisms, best first. `start` climbs
down the ladder until a rung proves itself with an event of its own making, and says which one stands and what is
therefore blind. A new sensor is one file here and one line in TABLE; a test walks them all and compares what is
declared with what is yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import NamedTuple, Protocol

from edgeguard.model import NOBODY, Actor, Observation


class Column(NamedTuple):
    """One declared column. `reference`: learn keeps it in the baseline, and `same` can be asked of it. `instead`:
    an observation has it in the place of that one, never both."""

    type: str  # "str", "int", "bool", "bytes", "list" (tuple of str)
    description: str
    reference: bool = False
    instead: str = ""


class Came(Protocol):
    """How a package came to be installed, where that is worth knowing (`upgrades.overlay.Notable`)."""

    @property
    def version(self) -> str: ...

    @property
    def word(self) -> str: ...

    @property
    def files(self) -> int: ...

    @property
    def before(self) -> str: ...


class Rung(NamedTuple):
    """Which mechanism stands after the self-test, and what it cannot see."""

    name: str  # a name from the sensor's ladder
    proven: bool  # a self-made event was seen (or, for polling, a look succeeded)
    blind: tuple[str, ...] = ()  # one plain sentence for each thing that is not seen on this rung
    tried: tuple[tuple[str, str], ...] = ()  # (better rung, why it does not stand)


def _nobody(_pid: int) -> Actor:
    return NOBODY


def _no_package(_path: str) -> str:
    return ""


def _unknown(_path: str) -> bool:
    return False


def _nothing(_package: str) -> None:
    return None


class Context(NamedTuple):
    """What a sensor may ask of the rest of the house. Only functions and values: sensors import no other room."""

    root: str = "/"
    actor_of: Callable[[int], Actor] = _nobody  # pid -> who, also for processes that just ended
    package_of: Callable[[str], str] = _no_package  # absolute path -> Debian package that owns it, "" if none
    known_file: Callable[[str], bool] = _unknown  # is this path in the baseline's file manifest?
    went: Callable[[str], bool] = _unknown  # was this path known until a package took it away?
    came: Callable[[str], Came | None] = _nothing  # package -> what somebody should know of how it came here
    notable: Callable[[], tuple[str, ...]] = tuple  # the packages of which there is such a thing to know


class Sensor(Protocol):
    """The contract. All methods return quickly: what takes long (sweeps, learning) runs in a helper process.

    A sensor may also have `volatile` (columns whose change alone is no news) and `looks_after` (seconds): then its
    descriptor only says that something happened, and the daemon looks at everything so much later.
    """

    name: str
    kinds: Mapping[str, Mapping[str, Column]]
    ladder: tuple[str, ...]
    interval_s: int  # between full looks when nothing happens; 0: events alone suffice
    triggers: tuple[str, ...]  # globs: when such a file changes, look again (with that change's actor)

    def start(self) -> Rung:
        """Open what is needed and prove a rung. Never raises for a missing facility: that is a Rung with `blind`."""

    def fileno(self) -> int | None:
        """A descriptor for the loop to wait on, None if there is none."""

    def ready(self, now: int) -> Iterable[Observation]:
        """Drain the descriptor: what the kernel told, as observations. Never blocks."""

    def observe(self, now: int) -> Iterable[Observation]:
        """Look at everything once: all subjects that are there now. The daemon finds what is new, changed and gone."""

    def close(self) -> None: ...


TABLE: Mapping[str, str] = {
    "files": "edgeguard.sensors.files:Files",
    "listeners": "edgeguard.sensors.listeners:Listeners",
    "processes": "edgeguard.sensors.processes:Processes",
    "usb": "edgeguard.sensors.usb:Usb",
    "host": "edgeguard.sensors.host:Host",
    "accounts": "edgeguard.sensors.accounts:Accounts",
    "packages": "edgeguard.sensors.packages:Packages",
    "health": "edgeguard.sensors.health:Health",
}


def sensor_class(name: str) -> type[Sensor]:
    """The class of one sensor, imported now: a sensor that is not used costs nothing."""
    module, _, attribute = TABLE[name].partition(":")
    found: type[Sensor] = getattr(import_module(module), attribute)
    return found
