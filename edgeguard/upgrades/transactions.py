"""What the hook left of one transaction: packages, .debs, indexes and old lists, by name, read strictly.

Whoever may write to the spool is the daemon's user or root; all of it is data from outside none the less. What a
transaction claims is only worth what the archive's signatures say of it (`archive`).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from edgeguard.errors import DecodeError

NAME = re.compile(r"(\d{20})-(\d{1,10})")
IDS_MAX = 64  # transactions that are looked at; the hook keeps fewer
FILE_MAX = 4 << 20  # bytes of what apt said
ENTRIES_MAX = 50_000  # names in one transaction: five a package
LIST_MAX = 32 << 20  # bytes of the list of files of one package; a kernel's has 0.5 MB
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
ARCHITECTURE = re.compile(r"[a-z0-9-]{0,40}")
BEFORE_S = 60  # so much earlier than its directory's inode a transaction may say that it began
INTERRUPTED_S = 10  # a hidden transaction that is older was not finished by its hook


class Removal(NamedTuple):
    """A package that goes."""

    name: str
    version: str
    architecture: str


class Transaction(NamedTuple):
    id: str
    began: int  # ms
    hook: str  # apt or dpkg
    action: str  # of dpkg: unpack, install, configure, remove, ...; "" where apt called
    debs: tuple[str, ...]  # file names in the transaction's directory
    missing: tuple[str, ...]  # .debs that apt named and that could not be kept
    removals: tuple[Removal, ...]
    before: dict[str, str]  # package (name or name:architecture) -> version until now, as far as apt said
    owned: tuple[str, ...]  # packages whose old list of files lies there, as owned.NAME
    indexes: tuple[str, ...]  # names of files of /var/lib/apt/lists that lie there, as index.NAME
    scripts: tuple[str, ...] = ()  # packages that go whose postrm lies there, as script.NAME.postrm


def ids(spool: str) -> list[str]:
    """The transactions that wait, oldest first."""
    try:
        with os.scandir(spool) as entries:
            names = [entry.name for entry, _ in zip(entries, range(IDS_MAX * 4), strict=False)]
    except OSError:
        return []
    found = [name for name in names if NAME.fullmatch(name)]
    return sorted(found)[-IDS_MAX:]


def finish_interrupted(spool: str, now_s: float) -> None:
    """What a hook was killed at gets its name: what it kept until then explains something all the same."""
    try:
        names = os.listdir(spool)
    except OSError:
        return
    for name in names:
        if name.startswith(".") and (match := NAME.fullmatch(name[1:])) and now_s - int(match[1]) / 1e9 > INTERRUPTED_S:
            os.rename(f"{spool}/{name}", f"{spool}/{name[1:]}")


def manifest_of(state: str, name: str) -> str:
    """Where `expected` puts what a transaction is expected to do."""
    return f"{state}/upgrades/{name}.egm"


def forget(state: str, spool: str, name: str) -> None:
    """Take a transaction away: it is judged."""
    if NAME.fullmatch(name) is None:
        raise ValueError(name)
    with suppress(FileNotFoundError):
        for inner in os.listdir(f"{spool}/{name}"):
            os.unlink(f"{spool}/{name}/{inner}")
        os.rmdir(f"{spool}/{name}")
    for suffix in (".egm", ".cbor", ".egm.new", ".cbor.new"):
        with suppress(FileNotFoundError):
            os.unlink(f"{state}/upgrades/{name}{suffix}")


def read(spool: str, name: str) -> Transaction:
    """One transaction. Raises DecodeError for what is none, OSError where it cannot be read."""
    match = NAME.fullmatch(name)
    if match is None:
        raise DecodeError(f"not a transaction: {name!r}")
    directory = f"{spool}/{name}"
    names = os.listdir(directory)
    if len(names) > ENTRIES_MAX:
        raise DecodeError(f"{len(names)} files in one transaction, at most {ENTRIES_MAX}")
    debs = tuple(sorted(inner for inner in names if re.fullmatch(r"\d{5}\.deb", inner)))
    owned = tuple(sorted(inner[6:-5] for inner in names if inner.startswith("owned.") and inner.endswith(".list")))
    indexes = tuple(sorted(inner[6:] for inner in names if inner.startswith("index.")))
    scripts = tuple(sorted(inner[7:-7] for inner in names if inner.startswith("script.") and inner.endswith(".postrm")))
    apt = content(directory, "apt") if "apt" in names else b""
    dpkg = content(directory, "dpkg") if "dpkg" in names else b""
    kept = content(directory, "debs").split(b"\0") if "debs" in names else []
    removals, before, wanted = apt_lines(apt)
    action, _, words = dpkg.partition(b"\0")
    if action in {b"remove", b"purge"}:
        removals = [Removal(name, "", where) for name, where in operands(words.split(b"\0"))]
    # A name says anything; the inode's clock cannot be set back from outside.
    began_ns = max(int(match[1]), os.stat(directory).st_ctime_ns - BEFORE_S * 10**9)
    return Transaction(
        name,
        began_ns // 1_000_000,
        "apt" if apt else "dpkg",
        action.decode("ascii", "replace")[:40],
        debs,
        tuple(sorted(wanted - {os.fsdecode(path) for path in kept})),
        tuple(removals),
        before,
        owned,
        indexes,
        scripts,
    )


def content(directory: str, name: str, limit: int = FILE_MAX) -> bytes:
    """A regular file of bounded size. Raises DecodeError for anything else."""
    fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DecodeError(f"{name}: not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DecodeError(f"{name}: larger than {limit} bytes")
    return data


def apt_lines(data: bytes) -> tuple[list[Removal], dict[str, str], set[str]]:
    """The lines of protocol 3: what goes, the versions until now, and the .debs that apt names.

    NAME VERSION ARCH MULTIARCH < NEWVERSION NEWARCH NEWMULTIARCH PATH|**REMOVE**|**CONFIGURE**, "-" for none.
    """
    removals: list[Removal] = []
    before: dict[str, str] = {}
    debs: set[str] = set()
    for line in data.split(b"\n"):
        fields = [os.fsdecode(field) for field in line.split(b" ")]
        if len(fields) != 9 or PACKAGE.fullmatch(fields[0]) is None:
            continue
        name, version, architecture = fields[:3]
        if ARCHITECTURE.fullmatch(architecture) is None:
            continue
        if version != "-":
            before[name] = before[f"{name}:{architecture}"] = version
        if fields[8] == "**REMOVE**":
            removals.append(Removal(name, version, architecture))
        elif fields[8].startswith("/"):
            debs.add(fields[8])
    return removals, before, debs


def operands(words: Iterable[bytes]) -> list[tuple[str, str]]:
    """Names of packages among the arguments of dpkg, each with its architecture where that was said."""
    pairs = (os.fsdecode(word).partition(":")[::2] for word in words)
    return [
        (name, where)
        for name, where in pairs
        if PACKAGE.fullmatch(name) and ARCHITECTURE.fullmatch(where) and name != "dpkg"
    ]
