"""What one transaction is expected to do to the files of this device, written down before or while it happens.

    STATE/upgrades/<id>.egm    a manifest: each path that a .deb brings, and each that may go
    STATE/upgrades/<id>.cbor   whose these paths are: the packages, and who vouches for them

In this manifest the field for capabilities, which no .deb holds, says which package a path belongs to and what kind of
path it is. Afterwards the .debs are not needed any more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import Any, NamedTuple

from edgeguard.codec import cbor
from edgeguard.codec.digests import Algorithm, Digester, swift
from edgeguard.codec.manifest import PATH_MAX, Block, Entry, Reader, Writer, order, split
from edgeguard.errors import DecodeError
from edgeguard.linux import durable
from edgeguard.upgrades import archive, deb, postrm, transactions
from edgeguard.upgrades.transactions import Transaction
from edgeguard.upgrades.world import World

PATHS_MAX = 1_500_000  # of one transaction; a full upgrade of a desktop has 300,000
OWNERS_MAX = 20_000
CONFFILE, MAY_GO, SCRIPT, BY_SCRIPT = 1, 2, 4, 8
_MARK = Struct("<IB")
_INFO_MAX = 8 << 20
_GOING = stat.S_IFIFO  # type of a path that may only go: it must have one


class Owner(NamedTuple):
    """One package of a transaction."""

    name: str
    architecture: str
    before: str  # version until now, "" if there was none or nobody said
    version: str  # "" where the package goes
    word: str  # who vouches: archive, operator, nobody
    sha256: bytes  # of the .deb, b"" where there is none
    paths: int
    scripts: bytes  # all of them, joined: what they say of modes and owners counts; of one that goes, its postrm


class Expected(NamedTuple):
    """All that is known of a transaction."""

    id: str
    began: int  # ms
    action: str
    owners: tuple[Owner, ...]
    troubles: tuple[str, ...]  # what could not be read or kept, in plain sentences


def folder(state: str) -> str:
    return f"{state}/upgrades"


def prepare(state: str, spool: str, name: str, root: str, algorithm: Algorithm = Algorithm.SHA256) -> Expected:
    """Read the .debs of a transaction and write down what they say, with digests as the baseline has them. Raises
    DecodeError and OSError for the whole; a .deb that cannot be read is a trouble of that .deb."""
    transaction = transactions.read(spool, name)
    draft = _Draft(World(root), swift(algorithm))
    directory = f"{spool}/{name}"
    draft.troubles += [f"{path}: could not be kept" for path in transaction.missing]
    for file in transaction.debs:
        try:
            draft.package(f"{directory}/{file}", transaction)
        except DecodeError as error:
            draft.troubles.append(f"{file}: {error}")
    places = [f"{directory}/index.", f"{root.rstrip('/')}/var/lib/apt/lists/"]
    vouched = archive.vouch(root, places, frozenset(owner.sha256 for owner in draft.owners))
    draft.troubles += vouched.troubles
    draft.owners = [owner._replace(word=vouched.found.get(owner.sha256, archive.NOBODY)) for owner in draft.owners]
    for removal in transaction.removals:
        draft.removal(removal, transaction, directory)
    draft.lists(transaction, directory)
    os.makedirs(folder(state), mode=0o700, exist_ok=True)
    _write(f"{folder(state)}/{name}.egm", draft.paths, algorithm)
    found = Expected(name, transaction.began, transaction.action, tuple(draft.owners), tuple(draft.troubles[:100]))
    durably(f"{folder(state)}/{name}.cbor", _pack(found))
    return found


def load(state: str, name: str) -> Expected:
    """What `prepare` found. FileNotFoundError where it did not; DecodeError for a damaged one."""
    return unpack(transactions.content(folder(state), f"{name}.cbor", _INFO_MAX), name)


def unpack(data: bytes, name: str) -> Expected:
    plain = cbor.decode(data, depth=8, size=_INFO_MAX)
    try:
        version, id_, began, action, owners, troubles = plain
        if version != 1 or id_ != name:
            raise ValueError(version)
        return Expected(name, int(began), str(action), tuple(Owner(*row) for row in owners), tuple(map(str, troubles)))
    except (TypeError, ValueError) as error:
        raise DecodeError(f"upgrades/{name}.cbor: {error}") from error


def marked(reader: Reader, offset: int) -> Iterator[Block]:
    """The blocks of one transaction, its owners counted on from `offset`."""
    for block in reader.blocks():
        entries = [entry._replace(caps=_MARK.pack(owner + offset, kind)) for entry, owner, kind in _marks(block)]
        yield Block(block.directory, block.names, entries)


def mark(entry: Entry) -> tuple[int, int]:
    """(owner, kind) of an entry."""
    owner, kind = _MARK.unpack(entry.caps)
    return owner, kind


def _marks(block: Block) -> Iterator[tuple[Entry, int, int]]:
    for entry in block.entries:
        if len(entry.caps) != _MARK.size:
            raise DecodeError("upgrades: an expected path has no owner")
        yield entry, *mark(entry)


class _Draft:
    """Paths and owners as they come together."""

    def __init__(self, world: World, digester: Digester) -> None:
        self._digester = digester
        self.paths: dict[bytes, Entry] = {}
        self.owners: list[Owner] = []
        self.troubles: list[str] = []
        self._world = world

    def package(self, path: str, transaction: Transaction) -> None:
        package = deb.Package(path)
        try:
            self._package(package, transaction)
        finally:
            package.close()

    def _package(self, package: deb.Package, transaction: Transaction) -> None:
        control = package.control()
        number = len(self.owners)
        if number >= OWNERS_MAX:
            raise DecodeError("too many packages in one transaction")
        before = transaction.before.get(f"{control.name}:{control.architecture}", "")
        before = before or transaction.before.get(control.name, "")
        found = {}
        conffiles = {self._world.located(name) for name in control.conffiles}
        for member in package.members(self._digester):
            place = self._world.located(member.path)
            kind = CONFFILE if place in conffiles else 0
            found[place] = self._entry(member, number, kind)
            if len(found) + len(self.paths) > PATHS_MAX:
                raise DecodeError("too many paths in one transaction")
        digest = package.sha256  # nothing is taken of a package that changed meanwhile
        for name, text in control.scripts.items():
            place = f"/var/lib/dpkg/info/{control.stem}.{name}".encode()
            mark_ = _MARK.pack(number, SCRIPT)
            found[place] = Entry(stat.S_IFREG | 0o755, 0, 0, len(text), "", self._digester.digest(text), b"", mark_)
        for place, entry in found.items():
            if stat.S_ISDIR(entry.st_mode) and place in self.paths:
                continue  # many packages bring one directory; who made it decided
            self.paths[place] = entry
        scripts = b"\n".join(control.scripts.values())[: 1 << 16]
        self.owners.append(
            Owner(control.name, control.architecture, before, control.version, "", digest, len(found), scripts)
        )
        self._may_go((f"/var/lib/dpkg/info/{control.stem}.{name}".encode() for name in deb.SCRIPTS), number)

    def _entry(self, member: deb.Member, number: int, kind: int) -> Entry:
        uid, gid = self._world.ids(member.user, member.group, member.uid, member.gid)
        size = member.size if stat.S_ISREG(member.st_mode) else 0
        return Entry(member.st_mode, uid, gid, size, "", member.digest, member.target, _MARK.pack(number, kind))

    def removal(self, removal: transactions.Removal, transaction: Transaction, directory: str) -> None:
        if len(self.owners) >= OWNERS_MAX:
            raise DecodeError("too many packages in one transaction")
        number = len(self.owners)
        script = b""
        for stem in (removal.name, f"{removal.name}:{removal.architecture}"):
            self._may_go((f"/var/lib/dpkg/info/{stem}.{name}".encode() for name in deb.SCRIPTS), number)
            if stem in transaction.scripts:
                script = transactions.content(directory, f"script.{stem}.postrm")
                script = script if len(script) <= postrm.SCRIPT_MAX else b""
        self.owners.append(Owner(removal.name, removal.architecture, removal.version, "", "", b"", 0, script))
        self._may_go((self._world.located(name) for name in postrm.removed(script)), number, BY_SCRIPT)

    def lists(self, transaction: Transaction, directory: str) -> None:
        """What the packages brought until now may go."""
        numbers = {owner.name: number for number, owner in enumerate(self.owners)}
        for name in transaction.owned:
            number = numbers.get(name.partition(":")[0])
            if number is None:
                continue
            data = transactions.content(directory, f"owned.{name}.list", transactions.LIST_MAX)
            lines = (line for line in data.split(b"\n") if line.startswith(b"/") and line != b"/.")
            self._may_go((self._world.located(line) for line in lines), number)

    def _may_go(self, places: Iterable[bytes], number: int, kind: int = 0) -> None:
        for place in places:
            if len(self.paths) < PATHS_MAX:
                self.paths.setdefault(place, Entry(_GOING, 0, 0, 0, "", caps=_MARK.pack(number, MAY_GO | kind)))


def write(path: str, paths: Mapping[bytes, Entry], algorithm: Algorithm = Algorithm.SHA256) -> None:
    """A manifest of these paths, durable under its name."""
    _write(path, paths, algorithm)


def _write(path: str, paths: Mapping[bytes, Entry], algorithm: Algorithm) -> None:
    folders: dict[bytes, dict[bytes, Entry]] = {}
    for place, entry in paths.items():
        directory, name = split(place)
        if name and len(name) <= 255 and _is_plain(place):
            folders.setdefault(directory, {})[name] = entry
    with open(f"{path}.new", "wb") as file:
        writer = Writer(file, algorithm)
        for directory in sorted(folders, key=order):
            names = sorted(folders[directory])
            writer.add(directory, names, [folders[directory][name] for name in names])
        writer.close()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def _is_plain(place: bytes) -> bool:
    """Can a manifest hold it? A list of files says anything, and one line must not end the judgement of all."""
    return len(place) < PATH_MAX and place.startswith(b"/") and b"//" not in place and b"\0" not in place


def durably(path: str, data: bytes) -> None:
    """A file under its name, whole or not at all."""
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    durable.sync(os.path.dirname(path))


def _pack(found: Expected) -> bytes:
    owners = [[_plain(value) for value in owner] for owner in found.owners]
    return cbor.encode([1, found.id, found.began, found.action, owners, [_plain(line) for line in found.troubles]])


def _plain(value: Any) -> Any:
    """Texts as they can be encoded: names of files may hold any byte."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
