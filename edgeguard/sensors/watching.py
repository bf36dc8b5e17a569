"""Which watch decides for a path. Pure: paths and watches in, decisions out; nothing is opened.

Watches form a tree by path component. A `Zone` is what holds inside one directory: the watch of the tree around it,
deeper watches that begin below, and exclusions that may still apply. Walking down is `zone.child(name)`; a walk that
meets only `plain` zones (one watch, nothing deeper, nothing excluded) needs no decision per file.

Paths are absolute `str`; the directory / is "" so that a child is always `directory + "/" + name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from edgeguard.model import Watch

ZONES_KEPT = 64  # directories whose zone is remembered; a path has at most 4 KiB
_MAGIC = re.compile(r"[*?\[]")


class _Exclusion(NamedTuple):
    literal: str  # the text before the first wildcard: tells quickly where the glob cannot match
    match: re.Pattern[str]


class _Node:
    """One path component that some watch names."""

    __slots__ = ("globs", "names", "watch")

    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.globs: list[tuple[re.Pattern[str], _Node]] = []
        self.watch: Watch | None = None

    def matching(self, name: str) -> Iterable[_Node]:
        """Literal names last: they decide over wildcards at the same depth."""
        for pattern, node in self.globs:
            if pattern.match(name):
                yield node
        node_or_none = self.names.get(name)
        if node_or_none is not None:
            yield node_or_none


class Zone:
    """What holds for the children of one directory."""

    __slots__ = ("exclusions", "nodes", "plain", "quiet", "watch")

    def __init__(self, watch: Watch | None, nodes: tuple[_Node, ...], exclusions: tuple[_Exclusion, ...]) -> None:
        self.watch = watch  # decides for every child that no deeper watch takes over; None: only those matter
        self.nodes = nodes
        self.exclusions = exclusions
        self.plain = watch is not None and not nodes and not exclusions
        # No content of what lies directly in here is watched, whatever its name.
        self.quiet = not nodes and (watch is None or watch.only == "setid")

    @property
    def dead(self) -> bool:
        """Nothing below here is watched."""
        return self.watch is None and not self.nodes

    @property
    def setid_only(self) -> bool:
        """Below here only programs that run with other rights matter."""
        return self.watch is not None and self.watch.only == "setid" and not self.nodes

    def names(self) -> list[str] | None:
        """The only names that matter here; None: a listing is needed."""
        if self.watch is not None or any(node.globs for node in self.nodes):
            return None
        return sorted({name for node in self.nodes for name in node.names})

    def decide(self, path: str) -> Watch | None:
        """The watch that decides for `path`, a child of this zone's directory; None if it is not watched."""
        if self.nodes:
            found = self.own(path[path.rfind("/") + 1 :])
            if found is not None:
                # A wildcard at the end of a watch's path matches more names than were meant.
                return None if any(item.match.match(path) for item in _compiled(found)) else found
        return None if self._excluded(path) else self.watch

    def child(self, path: str) -> Zone:
        """The zone inside the directory `path`, a child of this zone's directory."""
        if self.plain:
            return self
        name = path[path.rfind("/") + 1 :]
        nodes = tuple(deeper for node in self.nodes for deeper in node.matching(name))
        watch = None if self._excluded(path) else self.watch
        exclusions = self.exclusions if watch is not None else ()
        for node in nodes:
            if node.watch is not None and node.watch.recurse:
                watch, exclusions = node.watch, _compiled(node.watch)
                if any(item.match.match(path) for item in exclusions):  # a name that its wildcard was not meant for
                    watch, exclusions = None, ()
        nodes = tuple(node for node in nodes if node.names or node.globs)
        return Zone(watch, nodes, tuple(item for item in exclusions if _may_match_below(item, path)))

    def beyond(self, outside: Zone) -> Zone:
        """This zone, of a child of `outside`'s directory, without the watch that began further up."""
        if self.watch is None or self.watch is not outside.watch:
            return self
        return Zone(None, self.nodes, ())

    def down(self, directory: str, below: str) -> Zone:
        """The zone inside `below`, which lies in `directory`, that of this zone, or is it."""
        zone, at = self, len(directory)
        while at < len(below) and not (zone.plain or zone.dead):
            at = below.find("/", at + 1)
            at = len(below) if at < 0 else at
            zone = zone.child(below[:at])
        return zone

    def own(self, name: str) -> Watch | None:
        """The deepest watch whose path ends with this name here."""
        found = None
        for node in self.nodes:
            for deeper in node.matching(name):
                if deeper.watch is not None:
                    found = deeper.watch
        return found

    def _excluded(self, path: str) -> bool:
        return any(item.match.match(path) for item in self.exclusions)


class Plan:
    """All watches, compiled. `top` is the zone of /."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        root = _Node()
        self.watches = tuple(watches)
        for watch in watches:
            node = root
            for part in _parts(watch.path):
                node = _descend(node, part)
            if node.watch is None or watch.recurse or not node.watch.recurse:
                node.watch = watch
        watch_all = root.watch if root.watch is not None and root.watch.recurse else None
        exclusions = _compiled(watch_all) if watch_all is not None else ()
        nodes = (root,) if root.names or root.globs else ()
        self.top = Zone(watch_all, nodes, exclusions)
        self._zones: dict[str, Zone] = {}  # of directories that were asked for last

    def zone(self, directory: str) -> Zone:
        """The zone inside a directory ("" or "/" is the root).

        From the nearest directory above whose zone is known: a directory 2,000 levels deep costs as much as all above
        it together, and somebody who makes one asks for each of them.
        """
        path = "/" + "/".join(_parts(directory))
        missing: list[str] = []
        while path != "/" and path not in self._zones:
            missing.append(path)
            path = path[: path.rfind("/")] or "/"
        zone = self._zones.get(path, self.top)
        for below in reversed(missing):
            if not (zone.plain or zone.dead):
                zone = zone.child(below)
            self._remember(below, zone)
        return zone

    def _remember(self, directory: str, zone: Zone) -> None:
        if len(self._zones) >= ZONES_KEPT:
            del self._zones[next(iter(self._zones))]  # the oldest
        self._zones[directory] = zone

    def decide(self, path: str) -> Watch | None:
        """The watch that decides for one absolute path."""
        return self.zone(path[: path.rfind("/")]).decide(path)

    def describe(self) -> bytes:
        """Equal for plans that look at the same files in the same way; a cache of looks depends on it."""
        return repr(
            [(w.path, w.category, w.exclude, w.recurse, w.content, w.only, w.checks) for w in self.watches]
        ).encode("utf-8", "surrogateescape")


def literal_root(path: str) -> str:
    """The part of a watch's path before the first component with a wildcard: /home for /home/*/.ssh."""
    parts = []
    for part in _parts(path):
        if _MAGIC.search(part):
            break
        parts.append(part)
    return "/" + "/".join(parts)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part and part != "."]


def _descend(node: _Node, part: str) -> _Node:
    if not _MAGIC.search(part):
        return node.names.setdefault(part, _Node())
    pattern = re.compile(translate(part), re.DOTALL)
    for known, deeper in node.globs:
        if known.pattern == pattern.pattern:
            return deeper
    node.globs.append((pattern, _Node()))
    return node.globs[-1][1]


def _may_match_below(item: _Exclusion, directory: str) -> bool:
    """Could this glob match something in or below `directory`? Decided by its literal beginning alone."""
    inside = directory + "/"
    return item.literal.startswith(inside) or inside.startswith(item.literal)


_compiled_cache: dict[tuple[str, ...], tuple[_Exclusion, ...]] = {}


def _compiled(watch: Watch) -> tuple[_Exclusion, ...]:
    """The exclusions of a watch. Cached, because a walk meets the same few watches again and again."""
    if watch.exclude not in _compiled_cache:
        if len(_compiled_cache) > 256:  # plans of earlier baselines
            _compiled_cache.clear()
        _compiled_cache[watch.exclude] = tuple(
            _Exclusion(_MAGIC.split(glob, maxsplit=1)[0], glob_pattern(glob)) for glob in watch.exclude
        )
    return _compiled_cache[watch.exclude]


def excluded_by(watch: Watch, path: str) -> int:
    """The number of the exclusion of a watch that matches a path, -1 if none does."""
    return next((at for at, item in enumerate(_compiled(watch)) if item.match.match(path)), -1)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob over absolute paths: `*` and `?` stay inside a component, `**` crosses directories."""
    out, position = [], 0
    while position < len(glob):
        rest = glob[position:]
        if rest.startswith("**/"):
            out.append("(?:.*/)?")
            position += 3
        elif rest.startswith("**"):
            out.append(".*")
            position += 2
        elif rest[0] in "*?":
            out.append("[^/]*" if rest[0] == "*" else "[^/]")
            position += 1
        elif rest[0] == "[" and (end := rest.find("]", 2)) > 0:
            negated = rest[1] in "!^"
            body = rest[1 + negated : end].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            out.append(f"(?!/)[{'^' if negated else ''}{body}]")
            position += end + 1
        else:
            out.append(re.escape(rest[0]))
            position += 1
    try:
        return re.compile("".join(out) + r"\Z", re.DOTALL)
    except re.error:  # a range such as [z-a]: it matches itself, letter by letter
        return re.compile(re.escape(glob) + r"\Z")
