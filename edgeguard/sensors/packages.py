"""Sensor `packages`: what dpkg has installed; and which package owns a path.

dpkg's own files are read, neither dpkg nor apt is run. The lists say what a package brought, not that it is still
so: a replaced /usr/bin/ssh belongs to openssh-client all the same.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from edgeguard.model import Observation, Origin, Status, Value
from edgeguard.sensors import Came, Column, Context, Rung, parse_dpkg, reading
from edgeguard.sensors.snapshot import WHOLE_KIND

STATUS = "/var/lib/dpkg/status"
INFO = "/var/lib/dpkg/info"
DIVERSIONS_MAX = 1024 * 1024  # bytes; a hundred diversions give 10 KiB
LISTS_MAX = 20_000  # .list files that are searched
CHUNK = 128 * 1024  # bytes read at once from a .list; nearly all are smaller
# Where Debian packages bring no files. A full search costs 0.1 s, and these are what strangers' programs run from.
NEVER_PACKAGED = (
    *(b"/tmp/", b"/var/tmp/", b"/dev/", b"/proc/", b"/sys/", b"/run/", b"/home/", b"/root/"),
    *(b"/mnt/", b"/media/", b"/usr/local/"),
)
CACHE_MAX = 512  # paths whose owner is remembered, some 100 KiB

_KIND: Mapping[str, Column] = {
    "version": Column("str", "version that is installed", reference=True),
    "status": Column(
        "str", "installed, half-configured, unpacked, half-installed, triggers-pending, config-files, ..."
    ),
    "architecture": Column("str", "Debian architecture, or all"),
    "hold": Column("bool", "upgrades leave it alone"),
    "reinstall": Column("bool", "dpkg says that it must be installed anew"),
    "vouched": Column("str", "who vouches for the package that was installed since the baseline: nobody, or empty"),
    "files": Column("int", "paths of a package that nobody vouches for, else 0"),
    "came_from": Column("str", "the later version that was installed before, empty if this is no way back"),
}


def subject(name: str, architecture: str, native: str) -> str:
    """What a package is called here: with its architecture where that is a foreign one."""
    return name if architecture in (native, "all", "") else f"{name}:{architecture}"


def native(root: str) -> str:
    """The architecture of dpkg itself: the file that could say it exists only on multi-arch machines."""
    try:
        return next((package.architecture for package in _installed(root) if package.name == "dpkg"), "")
    except OSError:
        return ""


def _installed(root: str) -> Iterator[parse_dpkg.Package]:
    fd = os.open(reading.under(root, STATUS), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        yield from parse_dpkg.packages(iter(lambda: file.readline(parse_dpkg.LINE_MAX), b""))


class Packages:
    name = "packages"
    kinds: Mapping[str, Mapping[str, Column]] = {"package": _KIND}
    ladder = ("dpkg",)
    interval_s = 6 * 3600
    triggers = (STATUS,)

    def __init__(self, context: Context) -> None:
        self._root = context.root
        self._native = ""
        self._came = context.came
        self._notable = context.notable

    def start(self) -> Rung:
        if os.path.isfile(reading.under(self._root, STATUS)):
            return Rung("dpkg", proven=True)
        return Rung("dpkg", proven=False, blind=(f"packages: there is no {STATUS}",))

    def fileno(self) -> int | None:
        return None

    def ready(self, now: int) -> Iterable[Observation]:
        del now  # nothing comes by itself
        return ()

    def observe(self, now: int) -> Iterator[Observation]:
        """One at a time out of the open file: 3,000 packages never lie in memory together."""
        try:
            self._native = self._native or native(self._root)
            seen = set(self._notable())
            for package in _installed(self._root):
                if package.status == "not-installed":
                    continue
                name = subject(package.name, package.architecture, self._native)
                seen.discard(name)
                yield self._observed(name, package, self._came(name), now)
            for name in sorted(seen):  # dpkg may say what it likes: what came is known by signature
                came = self._came(name)
                if came is not None:
                    absent = parse_dpkg.Package(name, came.version, "", "not-installed", False, False)
                    yield self._observed(name, absent, came, now)
        except FileNotFoundError:
            return  # no Debian; the rung says so
        except OSError as error:
            note = reading.why(error)
            yield Observation("package", WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)

    def close(self) -> None:
        pass

    @staticmethod
    def _observed(name: str, package: parse_dpkg.Package, came: Came | None, now: int) -> Observation:
        nobody = came is not None and came.word == "nobody"
        columns: dict[str, Value] = {
            "version": package.version,
            "status": package.status,
            "architecture": package.architecture,
            "hold": package.hold,
            "reinstall": package.reinstall,
            "vouched": "nobody" if nobody else "",
            "files": came.files if came is not None and nobody else 0,
            "came_from": came.before if came is not None else "",
        }
        return Observation("package", name, columns, now, Status.PRESENT, Origin.SWEEP)


class Ownership:
    """Which package owns a path, looked up in dpkg's lists when asked. The last answers are remembered."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._info = reading.under(root, INFO)
        self._known: OrderedDict[str, str] = OrderedDict()
        self._stamp = 0

    def package_of(self, path: str) -> str:
        """Package name (with :arch where dpkg's list has it), "" if no package owns the path."""
        try:
            stamp = os.stat(self._info).st_mtime_ns  # each install and removal renames files in there
        except OSError:
            return ""
        if stamp != self._stamp:
            self._stamp = stamp
            self._known.clear()
        if path in self._known:
            self._known.move_to_end(path)
            return self._known[path]
        owner = self._owner(os.fsencode(path))
        self._known[path] = owner
        if len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)
        return owner

    def _owner(self, path: bytes) -> str:
        if b"\n" in path or not path.startswith(b"/"):
            return ""  # the lists have one path a line, so no package can own such a name
        if path.startswith(NEVER_PACKAGED):
            return ""
        wanted = parse_dpkg.aliases(path)
        diverter = ""
        for source, (target, package) in self._diversions().items():
            if source in wanted and package != ":":
                return package  # what lies here now came with the package that diverts
            if target in wanted:
                wanted, diverter = parse_dpkg.aliases(source), package
        return self._search([b"\n" + name + b"\n" for name in wanted], diverter)

    def _diversions(self) -> dict[bytes, tuple[bytes, str]]:
        path = reading.under(self._root, "/var/lib/dpkg/diversions")
        try:
            return parse_dpkg.diversions(reading.read(path, DIVERSIONS_MAX))
        except OSError:
            return {}

    def _search(self, needles: list[bytes], without: str) -> str:
        buffer = bytearray(CHUNK)
        try:
            with os.scandir(self._info) as entries:
                for _, entry in zip(range(LISTS_MAX * 8), entries, strict=False):  # eight files a package, as a bound
                    name = entry.name.removesuffix(".list")
                    if name != entry.name and name.split(":")[0] != without and _contains(entry.path, needles, buffer):
                        return name
        except OSError:
            pass  # dpkg replaces the directory's files while we look: no answer now is "no package"
        return ""


def _contains(path: str, needles: list[bytes], buffer: bytearray) -> bool:
    """Is one of the lines in this file? The end of each piece is carried over, so no line is cut in two."""
    keep = max(map(len, needles))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        buffer[0:1] = b"\n"
        filled = 1
        view = memoryview(buffer)
        while (count := os.readv(fd, [view[filled:]])) > 0:
            filled += count
            if any(buffer.find(needle, 0, filled) >= 0 for needle in needles):
                return True
            tail = bytes(view[max(0, filled - keep) : filled])
            view[: len(tail)] = tail
            filled = len(tail)
        return False
    finally:
        os.close(fd)
