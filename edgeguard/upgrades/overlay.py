"""The reference values that packages brought since the baseline was signed, as they lie on disk.

    STATE/upgrades/<sha256>.egm    the values: a manifest that lies over the baseline's (`codec/layers`)
    STATE/upgrades/overlay         signed by the device's key: which baseline it belongs to, the manifest's digest, and
                                   the packages that somebody should know of

It belongs to one file manifest of one baseline and ends with it: whoever learns the device anew, or installs a baseline
with another manifest, has said what is right. A power cut leaves the old one or the new one, whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from edgeguard.codec import cbor, cose, sha
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.layers import together
from edgeguard.codec.manifest import Block, Reader, Writer
from edgeguard.codec.values import columns_from_plain, columns_to_plain, from_plain, to_plain
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.linux import durable
from edgeguard.model import Columns
from edgeguard.sensors.reading import read

VERSION = 1
SIZE_MAX = 8 << 20  # bytes of the signed part; a version for each of 50,000 packages has 3 MB
ACCOUNTS_MAX = 2000  # beyond, accounts that come with packages are told; a package brings one or two
ENTRIES_MAX = 2_000_000  # files; beyond, the device has to be learned anew


class Notable(NamedTuple):
    """A package that somebody should know of, as it came to be installed."""

    name: str  # with :architecture where it is a foreign one
    version: str
    word: str  # who vouches: archive, operator, nobody
    files: int
    before: str  # the later version that was installed before, "" if this is no way back


class Account(NamedTuple):
    """An account that came or went with a package."""

    instead: bytes  # `fingerprint` of what the baseline says of it; where that is another, the baseline counts
    columns: Columns | None  # None: it went


class Overlay(NamedTuple):
    base: bytes  # SHA-256 of the file manifest that it lies over
    sha256: bytes
    size: int
    versions: dict[str, str]  # of every package that came since
    notable: tuple[Notable, ...]
    superseded: dict[str, bytes]  # path -> what was accepted of it (`fingerprint`) and no longer counts
    accounts: dict[str, Account] = {}  # noqa: RUF012 - never changed; subject -> what packages made of it


def told(found: Overlay) -> list[Any]:
    """An overlay as a helper tells the daemon of it."""
    superseded = [[os.fsencode(path), value] for path, value in found.superseded.items()]
    notable = [list(item) for item in found.notable]
    return [found.base, found.sha256, found.size, notable, superseded, accounts_to_plain(found.accounts)]


def fingerprint(columns: Columns | None) -> bytes:
    """An accepted value of a file, in 32 bytes."""
    plain = "gone" if columns is None else repr(sorted(columns.items()))
    value = sha.new()
    value.update(plain.encode("utf-8", "surrogatepass"))
    return value.digest()


def place(state: str) -> str:
    return f"{state}/upgrades/overlay"


def manifest_path(state: str, digest: bytes) -> str:
    return f"{state}/upgrades/{digest.hex()}.egm"


def load(state: str, public: bytes, base: bytes) -> Overlay | None:
    """The overlay of this baseline's manifest; None where there is none. Raises DecodeError for one that is damaged or
    that this device did not sign."""
    try:
        data = read(place(state), SIZE_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DecodeError(f"{place(state)}: {error.strerror}") from error
    try:
        plain = cbor.decode(cose.verify1(data, [public], cose.UPGRADES_AAD), depth=8, size=SIZE_MAX)
    except EdgeGuardError as error:
        raise DecodeError(f"{place(state)}: {error}") from error
    found = unpack(plain)
    if found.base != base:
        return None
    try:
        with open(manifest_path(state, found.sha256), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != found.size or digest_of(file.fileno()) != found.sha256:
                raise DecodeError("upgrades: the file manifest is not the one that was signed")
    except OSError as error:
        raise DecodeError(f"upgrades: the file manifest cannot be read: {error.strerror}") from error
    return found


def unpack(plain: Any) -> Overlay:
    try:
        version, base, digest, size, versions, notable, superseded, people = plain
        if version != VERSION:
            raise ValueError(version)
        known = {str(name): str(value) for name, value in versions}
        accepted = {os.fsdecode(path): bytes(value) for path, value in superseded if not isinstance(value, int)}
        if isinstance(base, int) or isinstance(digest, int) or len(accepted) != len(superseded):
            raise TypeError("a number where bytes should be")  # bytes(number) would take that much memory
        return Overlay(
            bytes(base),
            bytes(digest),
            int(size),
            known,
            tuple(Notable(*row) for row in notable),
            accepted,
            accounts(people),
        )
    except (TypeError, ValueError) as error:
        raise DecodeError(f"upgrades/overlay: {error}") from error


def pack(overlay: Overlay) -> bytes:
    versions = [list(pair) for pair in sorted(overlay.versions.items())]
    notable = [list(item) for item in overlay.notable]
    superseded = [[os.fsencode(path), value] for path, value in sorted(overlay.superseded.items())]
    plain = [overlay.base, overlay.sha256, overlay.size, versions, notable, superseded]
    return cbor.encode([VERSION, *plain, accounts_to_plain(overlay.accounts)])


def accounts_to_plain(found: Mapping[str, Account]) -> list[Any]:
    rows = sorted(found.items())
    return [
        [to_plain(subject), one.instead, None if one.columns is None else columns_to_plain(one.columns)]
        for subject, one in rows
    ]


def accounts(rows: Iterable[Any]) -> dict[str, Account]:
    """As `accounts_to_plain` wrote them. Raises DecodeError, TypeError, ValueError."""
    found: dict[str, Account] = {}
    for subject, instead, columns in rows:
        name = from_plain(subject)
        if not isinstance(name, str) or not isinstance(instead, bytes):
            raise TypeError("an account's name is a text, what it is instead of bytes")
        found[name] = Account(instead, None if columns is None else columns_from_plain(columns))
    return found


def write_manifest(state: str, *streams: Iterable[Block], algorithm: Algorithm = Algorithm.SHA256) -> tuple[bytes, int]:
    """Blocks in walk order, later streams over earlier ones, as a durable manifest under its digest: (digest, size)."""
    draft = f"{state}/upgrades/draft"
    with open(draft, "w+b") as file:
        writer = Writer(file, algorithm)
        for directory, found in together(*streams):
            names = sorted(found)
            writer.add(directory, names, [found[name] for name in names])
            if writer.entries > ENTRIES_MAX:
                raise DecodeError(f"more than {ENTRIES_MAX} files came with packages; learn the device anew")
        writer.close()
        os.fsync(file.fileno())
        digest, size = digest_of(file.fileno()), os.fstat(file.fileno()).st_size
    os.rename(draft, manifest_path(state, digest))
    return digest, size


def install(state: str, overlay: Overlay, key: bytes | cose.Signer, before: Overlay | None = None) -> None:
    """From now on this one holds. Manifests of others are taken away afterwards, but for that of the one `before`: a
    sweep that was asked for while it held may not have opened it yet."""
    data = cose.sign1(pack(overlay), key, cose.UPGRADES_AAD)
    folder = os.path.dirname(place(state))
    with open(f"{place(state)}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    durable.sync(folder)  # the manifest's name before the name that asks for it
    os.rename(f"{place(state)}.new", place(state))
    durable.sync(folder)
    kept = {f"{one.sha256.hex()}.egm" for one in (overlay, before) if one is not None}
    for name in _manifests(folder):
        if name not in kept:
            with suppress(FileNotFoundError):
                os.unlink(f"{folder}/{name}")


def _manifests(folder: str) -> Iterator[str]:
    return (name for name in os.listdir(folder) if len(name) == 68 and name.endswith(".egm"))


def digest_of(fd: int) -> bytes:
    from hashlib import sha256

    value, offset = sha256(), 0
    while chunk := os.pread(fd, 1 << 20, offset):
        value.update(chunk)
        offset += len(chunk)
    return value.digest()


def opened(state: str, found: Overlay | None) -> Reader | None:
    """The manifest of an overlay; the descriptor is the caller's to close with the process."""
    if found is None:
        return None
    return Reader(os.open(manifest_path(state, found.sha256), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
