"""dpkg's status file and diversions taken apart, line by line. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PACKAGES_MAX = 50_000  # all of Debian has some 65,000; a large desktop 4,000
LINE_MAX = 64 * 1024  # bytes; what is longer is a description, never one of our four fields
FIELD_MAX = 256  # bytes of a version or a name

_FIELDS = (b"Package", b"Status", b"Version", b"Architecture")


class Package(NamedTuple):
    name: str
    version: str
    architecture: str
    status: str  # third word of Status: installed, half-configured, unpacked, config-files, ...
    hold: bool
    reinstall: bool  # dpkg says that it must be installed anew


def packages(lines: Iterable[bytes]) -> Iterator[Package]:
    """Every paragraph that has a name and a status. `lines` may come from an open file: nothing is kept."""
    fields: dict[bytes, bytes] = {}
    count = 0
    for line in lines:
        if line in (b"\n", b""):
            if (package := _package(fields)) is not None:
                yield package
            fields.clear()
            count += 1
            if count > PACKAGES_MAX:
                return
        elif line[:1] in b"PSVA":  # continuation lines and most other fields are passed over at once
            name, _, value = line.partition(b":")
            if name in _FIELDS:
                fields.setdefault(name, value.strip()[:FIELD_MAX])
    if (package := _package(fields)) is not None:
        yield package


def _package(fields: dict[bytes, bytes]) -> Package | None:
    status = fields.get(b"Status", b"").split()
    if not fields.get(b"Package") or len(status) != 3:
        return None
    text = {name: os.fsdecode(fields.get(name, b"")) for name in _FIELDS}
    return Package(
        text[b"Package"],
        text[b"Version"],
        text[b"Architecture"],
        os.fsdecode(status[2]),
        status[0] == b"hold",
        status[1] == b"reinstreq",
    )


def diversions(data: bytes) -> dict[bytes, tuple[bytes, str]]:
    """Diverted path to (where the file lies now, package that diverts; ":" is the administrator)."""
    lines = data.split(b"\n")
    return {lines[at]: (lines[at + 1], os.fsdecode(lines[at + 2])) for at in range(0, len(lines) - 2, 3)}


def aliases(path: bytes) -> tuple[bytes, ...]:
    """A path as dpkg may have recorded it: /bin is /usr/bin since the merge, but lists still say either."""
    bare = path[4:] if path.startswith(b"/usr/") else path
    top = bare.split(b"/", 2)[1] if bare.count(b"/") > 1 else b""
    if top not in (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32", b"libo32"):
        return (path,)
    return (path, bare if bare != path else b"/usr" + path)
