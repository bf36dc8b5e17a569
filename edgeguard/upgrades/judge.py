"""What lies on the disk, against what an archive signed for it; and the reference values that come of it.

The newest transaction that speaks of a path decides. What the .deb says becomes the reference value, whether the file
looks like that or not: so a file that was exchanged while its package was unpacked deviates from then on, also if it
is the old, known version that somebody put back. Settings files are different: dpkg may have kept the old one.

Nothing is believed of dpkg but which version it calls installed: where the new one never came to be installed, the
old reference values stay.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgeguard.codec.digests import Algorithm, swift
from edgeguard.codec.layers import ABSENT, Lookup, together
from edgeguard.codec.manifest import Block, Entry, Reader
from edgeguard.model import Watch
from edgeguard.sensors import parse_dpkg
from edgeguard.sensors.look import CannotLook, Eye, masked
from edgeguard.sensors.packages import native, subject
from edgeguard.sensors.walk import resolved
from edgeguard.sensors.watching import Plan
from edgeguard.upgrades.archive import NOBODY
from edgeguard.upgrades.expected import BY_SCRIPT, CONFFILE, MAY_GO, SCRIPT, Expected, Owner, mark, marked
from edgeguard.upgrades.world import World, same_content, same_rights

OTHERS_MAX = 100  # paths of one package that are named because they are not as signed
BROUGHT_MAX = 4 << 20  # bytes of paths that packages brought for which nobody vouches; beyond, they are told one by one
LOOK_MAX = 5000  # such paths of all packages that the daemon is to look at; beyond, it compares everything


@dataclass(slots=True)
class Tally:
    """One package of one transaction, counted."""

    signed: int = 0  # paths that are as signed, unchanged directories not among them
    kept: int = 0  # settings files that are not the package's
    removed: int = 0
    others: list[bytes] = field(default_factory=list)  # paths that are neither
    other: int = 0
    missed: int = 0  # paths of a package that did not come to be installed
    stood: bool = True  # dpkg calls it installed in this version, or, where it goes, no longer
    changed: int = 0  # paths whose reference value is another than before
    known: int = 0  # paths of a package that nobody vouches for, known from elsewhere: they are told one by one
    setid: int = 0  # programs with other rights that nobody vouches for: they are told one by one

    @property
    def says(self) -> bool:
        """Is there anything to be told?"""
        return any((self.signed, self.kept, self.removed, self.other, self.missed, self.known, self.setid))


class Pending(NamedTuple):
    """A prepared transaction, open."""

    expected: Expected
    reader: Reader


class Judge:
    """Looks at every expected path once. `references`: what was expected until now; `brought`: paths whose reference
    value is of a package that nobody vouches for, and the name of that package; `known`: package -> version as this
    device knows it, None where nobody learned packages; `gone`: package -> when it was taken away (ms)."""

    def __init__(
        self,
        root: str,
        watches: Sequence[Watch],
        references: Lookup | None,
        hash_file_max: int,
        brought: Mapping[bytes, str] | None = None,
        known: Mapping[str, str] | None = None,
        gone: Mapping[str, int] | None = None,
    ) -> None:
        self.world = World(root)
        self.native = native(root)
        self.brought = dict(brought or {})
        self.known = known
        self.gone = gone or {}
        self.came: set[str] = set()  # packages that came in another version, and that somebody vouches for
        self.room = BROUGHT_MAX - sum(len(path) + 16 for path in self.brought)
        self.plan = Plan(resolved(watches, root))
        self.references = references
        self.names: frozenset[str] = frozenset()  # of all packages that come or go
        self.vouched: set[bytes] = set()  # digests of all files of packages that somebody vouches for
        self.scripts = b""  # of these packages
        self.signed_scripts: dict[str, bytes] = {}  # of each that somebody vouches for
        self.others: list[bytes] = []  # paths that are not as signed, of all packages
        self.moved: dict[bytes, Entry] = {}  # files that lie elsewhere, because another package has their path
        self.algorithm = references.algorithm if references is not None else Algorithm.SHA256
        self.eye = Eye(hash_file_max, digester=swift(self.algorithm))

    def run(self, pending: Sequence[Pending], tallies: list[Tally]) -> Iterator[Block]:
        """The new reference values, in walk order. `pending`: oldest first; `tallies`: one for each owner."""
        owners: list[Owner] = []
        streams: list[Iterable[Block]] = []
        for transaction in pending:
            streams.append(marked(transaction.reader, len(owners)))
            owners += transaction.expected.owners
        began = [transaction.expected.began for transaction in pending for _ in transaction.expected.owners]
        self.names = frozenset(owner.name for owner in owners)
        came = [owner for owner in owners if owner.version and owner.word != NOBODY]
        self.signed_scripts = {owner.name: owner.scripts for owner in came}
        self.came = {self.name(owner) for owner in owners if self._came(owner)}
        tallies += [
            Tally(stood=self.stands(owner) if owner.version else self._went(self.name(owner), when))
            for owner, when in zip(owners, began, strict=True)
        ]
        self.scripts = b"\n".join(owner.scripts for owner in came if self.stands(owner))
        for directory, names in together(*streams):
            found: dict[bytes, Entry] = {}
            for name, entry in names.items():
                number, kind = mark(entry)
                place = directory + b"/" + name
                reference = self._one(
                    place, entry._replace(caps=b""), kind, owners[number], began[number], tallies[number]
                )
                if reference is not None:
                    found[name] = reference
            if found:
                yield Block(directory, sorted(found), [found[name] for name in sorted(found)])

    def _one(self, path: bytes, signed: Entry, kind: int, owner: Owner, began: int, tally: Tally) -> Entry | None:
        """The reference value of a path from now on; None: as before."""
        stands = self.stands(owner)
        if signed.digest and owner.word != NOBODY and stands:
            self.vouched.add(signed.digest)
        watch = self.plan.decide(os.fsdecode(path))
        if watch is None:
            return None
        before = self.references.lookup(path) if self.references is not None else None
        if kind & MAY_GO:
            if before is None or self.look(path, watch) is not None or not self._may_go(path, owner, began):
                return None
            if not stat.S_ISDIR(before.st_mode) and self.world.listed(path, self.names):
                return None  # a list that names what is another's: whoever may write it says anything
            if kind & BY_SCRIPT and not self._known_postrm(owner):
                return None
            tally.removed += 1
            self.brought.pop(path, None)
            return ABSENT
        setid = stat.S_ISREG(signed.st_mode) and bool(signed.st_mode & 0o6000)
        if watch.only == "setid" and not setid:
            return None
        if owner.word == NOBODY and setid:
            tally.setid += self.look(path, watch) != before
            return None
        seen = self.look(path, watch)
        if stands and owner.word == NOBODY and not self._its_own(path, before, owner):
            tally.known += 1
            tally.changed += seen != before
            self.others.append(path)
            return None
        if not stands:  # else an old, weak file would be right because its .deb, which is signed, lies in the spool
            tally.missed += not kind & CONFFILE
            gone = seen is None and before is not None and owner.word != NOBODY and not kind & CONFFILE
            # It was there, was removed, and did not come back.
            return ABSENT if gone and self._went(self.name(owner), began) else None
        if stat.S_ISDIR(signed.st_mode):
            made = self._directory(path, signed, seen, before, watch, owner.scripts)
            tally.changed += made is not None and made != before
            if owner.word != NOBODY and before is not None and same_rights(signed, before):
                self.brought.pop(path, None)  # a directory of several packages stays with the last of them
            return made if made is None else self._counts(path, made, owner)
        wanted = self.wanted(path, signed, seen, before, watch, owner.scripts)
        if owner.word == NOBODY and (wanted.setid or wanted.caps):
            tally.setid += seen != before  # also if its own scripts give these rights
            return None
        if seen is not None and same_content(wanted, seen) and same_rights(wanted, seen):
            tally.signed += 1
            tally.changed += wanted != before
            return self._counts(path, wanted, owner)
        if kind & CONFFILE:
            tally.kept += 1
            return None
        if seen is None and (self.world.excluded(path) or kind & SCRIPT):
            return None
        moved = self.world.diverted(path, owner.name)
        if moved is not None and self._diverts(path, *moved):
            self._moved(moved[0], signed, owner, tally)
            return None
        tally.other += 1
        tally.changed += wanted != before
        self.others.append(path)
        if len(tally.others) < OTHERS_MAX:
            tally.others.append(path)
        return self._counts(path, wanted, owner)

    def _its_own(self, path: bytes, before: Entry | None, owner: Owner) -> bool:
        """May a package that nobody vouches for say what this path is? Only where nothing else did."""
        if path in self.brought:
            return self.brought[path] == self.name(owner)
        return before is None and self.room > 0

    def _counts(self, path: bytes, reference: Entry, owner: Owner) -> Entry:
        """The same reference value; who it is of is kept, as long as that is nobody who is known."""
        if owner.word == NOBODY:
            self.room -= 0 if path in self.brought else len(path) + 16
            self.brought[path] = self.name(owner)
        else:
            self.brought.pop(path, None)
        return reference

    def name(self, owner: Owner) -> str:
        """As the sensor names it (`sensors.packages.subject`). Who takes a package away may have left out that it is a
        foreign one."""
        known = self.known or {}
        if owner.architecture or owner.name in known:
            return subject(owner.name, owner.architecture, self.native)
        return next((name for name in sorted(known) if name.startswith(f"{owner.name}:")), owner.name)

    def _may_go(self, path: bytes, owner: Owner, began: int) -> bool:
        """Anybody can say that a package goes, and what was its own. dpkg must have come to it."""
        name = self.name(owner)
        if owner.word == NOBODY and owner.version and self.stands(owner):
            return self.brought.get(path) == name
        return name in self.came or self._went(name, began)

    def _known_postrm(self, owner: Owner) -> bool:
        """Is the script that was kept of a package that goes the one that this device knew, and not of one for which
        nobody vouches?"""
        digest = self.eye.digester.digest(owner.scripts)
        for stem in (owner.name, f"{owner.name}:{owner.architecture}"):
            path = f"/var/lib/dpkg/info/{stem}.postrm".encode()
            if self.references is not None and (known := self.references.lookup(path)) is not None:
                return known.type == "file" and known.digest == digest and path not in self.brought
        return False

    def _came(self, owner: Owner) -> bool:
        """The same version once more takes nothing away."""
        other = owner.version != (self.known or {}).get(self.name(owner), "")
        return bool(owner.version) and owner.word != NOBODY and other and self.stands(owner)

    def _went(self, name: str, began: int) -> bool:
        """A package that this device knew and that dpkg no longer calls installed. Each goes once: what is told again
        of it later explains nothing."""
        if (self.known is not None and name not in self.known) or self.gone.get(name, began) != began:
            return False
        package, _, foreign = name.partition(":")
        return not any(
            self.world.installed(package, where) for where in ((foreign,) if foreign else (self.native, "all"))
        )

    def took_away(self, owner: Owner, began: int) -> bool:
        """Did it go, and is what its postrm says what this device knew?"""
        return self._went(self.name(owner), began) and self._known_postrm(owner)

    def _diverts(self, path: bytes, place: bytes, package: str) -> bool:
        """dpkg's diversions are a list that anybody with root may write. One counts if something lies there that is
        known, or if the script of an installed package makes it, as it was signed or as it is known."""
        if self.references is not None and self.references.lookup(place) is not None:
            return True
        scripts = [self.signed_scripts.get(package, b"")]
        scripts += [self.world.read(name) for name in self.world.scripts(package) if self._as_known(name)]
        return any(b"dpkg-divert" in text and naming(text, path, whole=False) for text in scripts)

    def _as_known(self, path: bytes) -> bool:
        watch = self.plan.decide(os.fsdecode(path))
        before = self.references.lookup(path) if self.references is not None else None
        return watch is not None and before is not None and self.look(path, watch) == before

    def _moved(self, place: bytes, signed: Entry, owner: Owner, tally: Tally) -> None:
        """A file that dpkg put elsewhere."""
        watch = self.plan.decide(os.fsdecode(place))
        if watch is None:
            return
        before = self.references.lookup(place) if self.references is not None else None
        seen = self.look(place, watch)
        if owner.word == NOBODY and not self._its_own(place, before, owner):
            tally.known += 1
            return
        wanted = self.wanted(place, signed, seen, before, watch, owner.scripts)
        self.moved[place] = self._counts(place, wanted, owner)
        tally.changed += wanted != before
        tally.signed += seen == wanted
        tally.other += seen != wanted

    def _directory(
        self, path: bytes, signed: Entry, seen: Entry | None, before: Entry | None, watch: Watch, scripts: bytes
    ) -> Entry | None:
        """dpkg makes directories that are missing and leaves those alone that are there; scripts may give rights."""
        if before is not None and seen is not None and seen.type == before.type and not same_rights(before, seen):
            return _with_rights(before, seen) if self._given(scripts, path, before, seen) else None
        if before is not None or seen is None or not same_rights(signed, seen) or seen.type != "directory":
            return None
        return masked(signed._replace(category=watch.category, size=0), watch)

    def stands(self, owner: Owner) -> bool:
        """Does dpkg call it installed in just this version?"""
        return self.world.installed(owner.name, owner.architecture) == owner.version

    def wanted(
        self, path: bytes, signed: Entry, seen: Entry | None, before: Entry | None, watch: Watch, scripts: bytes
    ) -> Entry:
        """What a .deb says of a path, as this device is to see it: with rights that were given to it before, or that
        the package's own signed scripts give."""
        content = watch.content and stat.S_ISREG(signed.st_mode)
        wanted = signed._replace(
            category=watch.category, digest=signed.digest if content else b"", size=signed.size if content else 0
        )
        wanted = masked(wanted, watch)
        if seen is None:
            return wanted
        if before is not None:
            wanted = _inherited(wanted, seen, before)
        if not same_rights(wanted, seen):
            overridden = self.world.override(path) == (seen.st_mode & 0o7777, seen.uid, seen.gid) and not seen.setid
            same_type = seen.st_mode >> 12 == wanted.st_mode >> 12
            if same_type and (overridden or self._given(scripts, path, wanted, seen)):
                wanted = _with_rights(wanted, seen)
        if seen.caps and seen.caps != wanted.caps and gives_capabilities(scripts, path):
            wanted = wanted._replace(caps=seen.caps)
        return wanted

    def _given(self, scripts: bytes, path: bytes, wanted: Entry, seen: Entry) -> bool:
        """Do the package's own scripts speak of this path with just these rights? They are signed like its files."""
        user, group = self.world.names(seen.uid, seen.gid)
        words = [rb"0?%o" % (seen.st_mode & 0o7777)] if seen.st_mode != wanted.st_mode else []
        words += [re.escape(os.fsencode(user))] if seen.uid != wanted.uid else []
        words += [re.escape(os.fsencode(group))] if seen.gid != wanted.gid else []
        patterns = [re.compile(rb"(?<![\w-])" + word + rb"(?![\w-])") for word in words]
        setid = bool(seen.st_mode & 0o6000)
        lines = naming(scripts, path, whole=setid)
        if not setid:
            return all(any(pattern.search(line) for line in lines.values()) for pattern in patterns)
        # With the rights of others it is one line, or the chown of this very path beside its chmod.
        pairs = [line + b"\n" + lines.get(number + 1, b"") for number, line in lines.items()]
        return any(all(pattern.search(pair) for pattern in patterns) for pair in pairs)

    def look(self, path: bytes, watch: Watch) -> Entry | None:
        """What lies there now; None: nothing. What cannot be read is as good as something else."""
        parent, _, name = self.world.under(path).rpartition(b"/")
        try:
            directory = os.open(parent or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return UNREADABLE
        try:
            return self.eye.look(directory, os.fsdecode(name), watch).entry
        except FileNotFoundError:
            return None
        except (CannotLook, OSError):
            return UNREADABLE
        finally:
            os.close(directory)


UNREADABLE = Entry(0, 0, 0, 0, "")


def _inherited(wanted: Entry, seen: Entry, before: Entry) -> Entry:
    """Rights, capabilities and attributes that were right before are right now: packages give them in their scripts,
    administrators once and for all."""
    if same_rights(before, seen) and before.st_mode >> 12 == wanted.st_mode >> 12:
        wanted = _with_rights(wanted, seen)
    if before.caps == seen.caps:
        wanted = wanted._replace(caps=seen.caps)
    if before.xattrs == seen.xattrs:
        wanted = wanted._replace(xattrs=seen.xattrs)
    return wanted


def _with_rights(wanted: Entry, seen: Entry) -> Entry:
    return wanted._replace(st_mode=wanted.st_mode & ~0o7777 | seen.st_mode & 0o7777, uid=seen.uid, gid=seen.gid)


def gives_capabilities(scripts: bytes, path: bytes) -> bool:
    return any(re.search(rb"\bsetcap\b", line) for line in naming(scripts, path, whole=False).values())


_ASSIGNED = re.compile(rb"\s*(?:export\s+|local\s+|readonly\s+)?(\w+)=(.*)")


def naming(scripts: bytes, path: bytes, *, whole: bool) -> dict[int, bytes]:
    """The lines that name this path, by number: as a whole, perhaps below a variable ($DPKG_ROOT/etc/x), or, where that
    is enough, by its last part; and those that use a variable which holds it whole. Not as a part of a longer name, and
    not in a remark."""
    name = path.rpartition(b"/")[2]
    if name not in scripts:
        return {}
    below = rb"(?:(?<![\w.+@/}$-])|\$\w+|\$\{\w+\})"
    aliases = parse_dpkg.aliases(path)
    names = [below + b"/?" + re.escape(alias.lstrip(b"/")) for alias in aliases]
    if not whole:
        names.append(rb"(?:(?<![\w.+@/}$-])|\$\w+/|\$\{\w+\}/)" + re.escape(name))
    pattern = re.compile(rb"(?:" + b"|".join(names) + rb")/?(?![\w.+@/*?\[${-])")
    lines = dict(enumerate(scripts.replace(b"\\\n", b" ").split(b"\n")))
    lines = {number: line for number, line in lines.items() if not line.lstrip().startswith(b"#")}
    found = {number: line for number, line in lines.items() if name in line and pattern.search(line)}
    whole_names = re.compile(rb"(?:" + b"|".join(names[: len(aliases)]) + rb")(?![\w.+@/*?\[${-])")
    held = {match[1] for line in found.values() if (match := _ASSIGNED.match(line)) and whole_names.search(match[2])}
    if held:  # PROGRAM=$(dpkg-divert --truename /usr/bin/ping), and then what becomes of "$PROGRAM"
        uses = re.compile(rb"\$(?:%b)\b|\$\{(?:%b)\}" % (b"|".join(held), b"|".join(held)))
        found |= {number: line for number, line in lines.items() if uses.search(line)}
    return found


def summed(owner: Owner, tally: Tally) -> str:
    """One package of one transaction, in words."""
    return f"{change(owner)}: {counts(owner, tally)}"


def change(owner: Owner) -> str:
    if not owner.version:
        return f"{owner.name} {owner.before}".strip() + " removed"
    if not owner.before:
        return f"{owner.name} {owner.version} installed"
    if owner.before == owner.version:
        return f"{owner.name} {owner.version} installed again"
    return f"{owner.name} {owner.before} → {owner.version}"


WORDS: Mapping[str, str] = {
    "archive": "as signed by the archive",
    "operator": "as in a package that the operator trusts without a signature",
    "nobody": "as in the package, which no archive vouches for",
    "": "",
}


def counts(owner: Owner, tally: Tally) -> str:
    """What became of its files, in words."""
    if not owner.version:
        return f"{tally.removed} files gone" if tally.stood else "not believed, as dpkg has it or it never was here"
    total = tally.signed + tally.other
    parts = []
    if tally.missed:
        parts.append("it did not come to be installed")
    elif tally.other:
        parts.append(f"{tally.signed} of {total} files {WORDS[owner.word]}, {tally.other} not")
    else:
        parts.append(f"{total} files, all {WORDS[owner.word]}" if total else "no watched files")
    if tally.known:
        parts.append(f"{tally.known} known before and not believed")
    if tally.kept:
        parts.append(f"{tally.kept} settings kept")
    if tally.removed:
        parts.append(f"{tally.removed} gone")
    return ", ".join(parts)
