"""Why a path is watched, or is not: the line of the policy that decides. Pure, and asked for one path at a time; what a
sweep needs for each of 100,000 is in `watching`, which decides the same (a test compares them).
"""

from __future__ import annotations

from typing import NamedTuple

from edgeguard.model import Watch
from edgeguard.sensors.watching import Plan, Zone, excluded_by, literal_root


class Decision(NamedTuple):
    """`watch` decides. With `exclusion`, it is the exclusion of that number, which matches `at`, the path or a
    directory above it. No watch: none covers the path."""

    watch: Watch | None
    exclusion: int = -1
    at: str = ""

    @property
    def watched(self) -> bool:
        return self.watch is not None and self.exclusion < 0

    @property
    def glob(self) -> str:
        """The exclusion, "" if none decides."""
        return self.watch.exclude[self.exclusion] if self.watch is not None and self.exclusion >= 0 else ""

    @property
    def source(self) -> str:
        """file:line of what decides, "" if that is not known."""
        if self.watch is None:
            return ""
        lines = self.watch.exclude_at.split("\n")
        if self.exclusion < 0 or self.exclusion >= len(lines) or not lines[self.exclusion]:
            return self.watch.source
        line = lines[self.exclusion]
        return line if ":" in line else f"{self.watch.source.rpartition(':')[0]}:{line}"


def decision(plan: Plan, path: str) -> Decision:
    """Which line decides about an absolute path, going down to it as a walk does."""
    parts = [part for part in path.split("/") if part and part != "."]
    if not parts:
        watch = next((watch for watch in plan.watches if literal_root(watch.path) == watch.path == "/"), None)
        return Decision(watch)
    zone, place = plan.top, ""
    found = Decision(zone.watch)
    for part in parts[:-1]:
        place += "/" + part
        below = zone.child(place)
        found = _passed(zone, below, place, found)
        zone = below
    place += "/" + parts[-1]
    own = zone.own(parts[-1]) if zone.nodes else None
    if own is not None:
        return _of(own, place)
    return _of(zone.watch, place) if zone.watch is not None else found


def _passed(zone: Zone, below: Zone, place: str, found: Decision) -> Decision:
    """What decides inside the directory `place`, if nothing deeper does."""
    if below.watch is not None:
        return Decision(below.watch)
    own = zone.own(place.rpartition("/")[2]) if zone.nodes else None
    ended = own if own is not None and own.recurse else zone.watch
    return _of(ended, place) if ended is not None else found


def _of(watch: Watch, place: str) -> Decision:
    number = excluded_by(watch, place)
    return Decision(watch, number, place if number >= 0 else "")
