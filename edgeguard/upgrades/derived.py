"""Files that no .deb holds, made on the device out of what is in one: compiled modules, links, caches, boot images.

Where a file can be made again or follows from names alone, that is checked, whoever made it. Where it cannot (a boot
image), it counts only if dpkg or a child of it made it, as the kernel said; or, where the kernel did not say who,
if its inode changed while the transaction ran. That is weaker, and a record says how many there were.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from edgeguard.codec.layers import ABSENT, Lookup
from edgeguard.codec.manifest import Entry
from edgeguard.upgrades import boot_copies, pam
from edgeguard.upgrades.judge import Judge, naming
from edgeguard.upgrades.kinds import (
    ALTERNATIVE,
    BOOT_COPY,
    BOOT_TEXT,
    BY_DPKG,
    BY_OTHERS,
    BY_UNKNOWN,
    CACHES,
    CERTIFICATE,
    ENABLED,
    LOCAL,
    PAM,
    PYC,
    RUNLEVEL,
    UNITS,
)
from edgeguard.upgrades.modules import compiled

CERTIFICATES_MAX = 16 << 20
_COPY, _TEXT = re.compile(BOOT_COPY), re.compile(BOOT_TEXT)
# What links of update-alternatives may show although no watch reads it: nobody runs it.
SHOWN = re.compile(rb"/usr/share/(?:man|info|doc|icons|pixmaps|images|backgrounds|wallpapers|desktop-base|plymouth)/")
GUARDED = (
    b"/etc/pam.d/",
    b"/etc/systemd/",
    b"/etc/sudoers",
    b"/etc/ssh/",
    b"/etc/cron",
    b"/etc/ld.so",
    b"/etc/init.d/",
)
"""A link there decides who gets in or what runs: only its own rule explains one."""


class Held(NamedTuple):
    """A path that differs and is in no .deb."""

    path: bytes
    maker: int


class Derived:
    """Explains single paths. `references` are those that hold from now on; `began`: of the first transaction, ns."""

    def __init__(self, judge: Judge, references: Lookup, began_ns: int, scratch: str) -> None:
        self._judge = judge
        self._references = references
        self._began_ns = began_ns
        self._scratch = scratch  # a directory where compiled modules may be made
        self._modules: dict[bytes, bytes] = {}  # path of a .pyc -> what it should be
        self._groups: list[tuple[bytes, frozenset[bytes]]] | None = None  # of alternatives: name, lines
        self.unproven = 0  # files whose content nothing proves, made by an unknown maker or by a signed script

    def explain_all(self, held: Iterable[Held]) -> Iterator[tuple[bytes, Entry]]:
        """Every path that is explained, with its reference value from now on."""
        paths = list(held)
        self._compile(path for path, _ in paths)
        for one in paths:
            if (entry := self.explain(one)) is not None:
                yield one.path, entry

    def explain(self, held: Held) -> Entry | None:
        """The reference value of a path from now on; None: nothing explains it."""
        watch = self._judge.plan.decide(os.fsdecode(held.path))
        if watch is None:
            return None
        seen = self._judge.look(held.path, watch)
        before = self._references.lookup(held.path)
        if seen is None:
            return ABSENT if before is not None and self._gone(held) else None
        if seen.uid or seen.gid or seen.setid or seen.caps or (seen.st_mode & 0o022 and seen.type != "symlink"):
            return None  # nothing of this kind runs with other rights or is for others to write
        if before is not None and (seen.xattrs != before.xattrs or seen.type != before.type):
            return None  # a program or a settings file does not become a link by being upgraded
        return seen if self._right(held, seen) else None

    def _right(self, held: Held, seen: Entry) -> bool:
        if PYC.fullmatch(held.path):
            return seen.type == "file" and bool(seen.digest) and self._modules.get(held.path) == seen.digest
        if _COPY.fullmatch(held.path):
            return seen.type == "file" and held.maker != BY_OTHERS and self._copied(held.path, seen.digest)
        if _TEXT.fullmatch(held.path):
            return seen.type == "file" and self._spoken_of(held.path) and self._made(held)
        if seen.type == "symlink":
            return held.maker != BY_OTHERS and self._link(held.path, seen)
        if seen.type == "file" and CERTIFICATE.fullmatch(held.path) and self._certificates(held.path):
            return True
        if CACHES.fullmatch(held.path):
            return self._made(held)
        if seen.type == "file" and PAM.fullmatch(held.path) and self._made(held, count=False) and self._pam(held.path):
            return True
        return seen.type == "file" and held.path.startswith(b"/etc/") and self._by_script(held, seen)

    def _by_script(self, held: Held, seen: Entry) -> bool:
        """Settings that a maintainer script copied from a file of its package (ucf does), or that it made at a path
        which it names: both are signed."""
        if seen.category not in ("config", "script"):
            return False
        copied = seen.digest in self._judge.vouched and seen.digest != self._judge.eye.digester.digest(b"")
        if copied and self._made(held, count=False) and (self._named(held.path) or self._by_ucf(held.path)):
            return True
        new = self._references.lookup(held.path) is None
        if not new or held.maker != BY_DPKG or not self._named(held.path):
            return False
        self.unproven += 1
        return True

    def _copied(self, path: bytes, digest: bytes) -> bool:
        """Is it a file of these packages, or what is known of a file that such copies are made of?"""
        if digest in self._judge.vouched:
            return bool(digest)
        for place in boot_copies.originals(path, lambda folder: _names(self._judge.world.under(folder))):
            known = self._references.lookup(place)
            if known is not None and known.digest == digest:
                return bool(digest)
        return False

    def _spoken_of(self, path: bytes) -> bool:
        """Does a signed script of these packages speak of this name, or a hook of kernels that is as it should be of
        the path?"""
        if naming(self._judge.scripts, path, whole=False):
            return True
        hooks = (
            folder + b"/" + name for folder in boot_copies.HOOKS for name in _names(self._judge.world.under(folder))
        )
        return any(naming(self._small(hook), path, whole=True) for hook in hooks if self._as_known(hook))

    def _named(self, path: bytes) -> bool:
        """Does a signed script of these packages speak of this very path?"""
        return re.search(rb"(?<![\w./-])" + re.escape(path) + rb"(?![\w./-])", self._judge.scripts) is not None

    def _by_ucf(self, path: bytes) -> bool:
        """Is it one of the settings files that ucf looks after?"""
        rows = (row.split(maxsplit=1) for row in self._small(b"/var/lib/ucf/registry").splitlines())
        return any(len(row) == 2 and row[1].strip() == path for row in rows)

    def _made(self, held: Held, *, count: bool = True) -> bool:
        """By dpkg, or, where nobody knows, in its time. The clock of an inode cannot be set from outside."""
        if held.maker != BY_UNKNOWN:
            return held.maker == BY_DPKG
        try:
            changed = os.lstat(self._judge.world.under(held.path)).st_ctime_ns
        except OSError:
            return False
        if changed < self._began_ns:
            return False
        self.unproven += count
        return True

    def _gone(self, held: Held) -> bool:
        """A derived file that is gone, because what it was made of is."""
        if match := PYC.fullmatch(held.path):
            return not os.path.lexists(self._judge.world.under(source_of(match)))
        before = self._references.lookup(held.path)
        if before is not None and before.type == "symlink":
            target = self._judge.world.under(self._target(held.path, before.target))
            return held.maker == BY_DPKG or not os.path.lexists(target)
        if held.maker == BY_OTHERS:
            return False
        if before is not None and before.type == "directory":
            return True  # it was empty: what was in it is judged by itself
        if match := LOCAL.fullmatch(held.path):  # purging takes it with its profile, by a child that is gone at once
            return not os.path.lexists(self._judge.world.under(match["folder"] + match["name"]))
        return CACHES.fullmatch(held.path) is not None and held.maker == BY_DPKG

    # -- links

    def _target(self, path: bytes, target: bytes) -> bytes:
        joined = target if target.startswith(b"/") else path.rpartition(b"/")[0] + b"/" + target
        return self._judge.world.located(os.path.normpath(joined))

    def _known(self, path: bytes) -> bool:
        return self._references.lookup(path) is not None

    def _link(self, path: bytes, seen: Entry) -> bool:
        place = self._target(path, seen.target)
        if ALTERNATIVE.fullmatch(path):
            if SHOWN.match(place):
                return True
            return self._known(place) and self._choice(path.rpartition(b"/")[2], seen.target)
        if ENABLED.fullmatch(path):
            return UNITS.fullmatch(place) is not None and self._unit(path, place)
        if ALTERNATIVE.fullmatch(place):
            return not path.startswith(GUARDED) and self._alternative(place)
        if match := RUNLEVEL.fullmatch(path):
            return place == b"/etc/init.d/" + match["name"] and self._known(place)
        if CERTIFICATE.fullmatch(path):
            inside = CERTIFICATE.fullmatch(place) is not None
            return inside or (place.startswith(b"/usr/share/ca-certificates/") and self._known(place))
        if CACHES.fullmatch(path):
            return self._known(place)
        fits = path.rpartition(b"/")[2] == place.rpartition(b"/")[2] or self._named(path)
        return path.startswith(b"/etc/") and not path.startswith(GUARDED) and fits and self._known(place)

    def _choice(self, name: bytes, target: bytes) -> bool:
        """Has update-alternatives this target for this name? It keeps a file a group: itself or a slave's name is in
        it, and each choice is a line."""
        if self._groups is None:
            folder = b"/var/lib/dpkg/alternatives"
            names = _names(self._judge.world.under(folder))
            self._groups = [(one, frozenset(self._small(folder + b"/" + one).split(b"\n"))) for one in names]
        return any(target in lines and (one == name or name in lines) for one, lines in self._groups)

    def _alternative(self, path: bytes) -> bool:
        """Does this link of update-alternatives lead where it may?"""
        watch = self._judge.plan.decide(os.fsdecode(path))
        seen = self._judge.look(path, watch) if watch is not None else None
        return seen is not None and seen.type == "symlink" and self._link(path, seen)

    def _unit(self, path: bytes, place: bytes) -> bool:
        """A unit under its own name, an instance of it, or an alias that the unit itself asks for."""
        name, unit = path.rpartition(b"/")[2], place.rpartition(b"/")[2]
        template, file = _template(unit), place
        if not self._known(place):  # an instance of a template is not there by itself
            file = place.rpartition(b"/")[0] + b"/" + template
        if not self._as_known(file):
            return False
        if name == unit or (unit == template and _template(name) == template):
            return True
        aliases = (line[6:].split() for line in self._small(file).splitlines() if line.startswith(b"Alias="))
        return any(name in words for words in aliases)

    # -- content that can be made again

    def _compile(self, paths: Iterable[bytes]) -> None:
        """What this Python makes of the sources that are as they should be: one child for all of a kind."""
        groups: dict[tuple[str, int], dict[bytes, bytes]] = {}
        for path in paths:
            match = PYC.fullmatch(path)
            if match is None or b"\n" in path or not self._as_known(source_of(match)):
                continue
            python = f"/usr/bin/python3.{match['minor'].decode()}"
            groups.setdefault((python, int(match["opt"] or 0)), {})[source_of(match)] = path
        for (python, optimize), sources in groups.items():
            if os.path.exists(python):
                made = compiled(
                    python,
                    [self._judge.world.under(source) for source in sources],
                    optimize,
                    self._scratch,
                    self._judge.eye.digester,
                )
                for source, path in sources.items():
                    self._modules[path] = made.get(self._judge.world.under(source), b"")

    def _certificates(self, path: bytes) -> bool:
        """A bundle that holds nothing but certificates that packages or the administrator brought."""
        names = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
        bundle = self._small(path)
        if not bundle or names.sub(b"", bundle).strip():
            return False
        known: set[bytes] = set()
        for folder in (b"/usr/share/ca-certificates", b"/usr/local/share/ca-certificates"):
            for above, _, files in os.walk(self._judge.world.under(folder)):
                for name in files:
                    inner = above[len(self._judge.world.under(b"")) :] + b"/" + name
                    if self._as_known(inner):
                        known.update(_bare(found) for found in names.findall(self._small(inner)))
        return all(_bare(found) in known for found in names.findall(bundle))

    def _pam(self, path: bytes) -> bool:
        """What pam-auth-update makes of a template and profiles that are as they should be."""
        template = b"/usr/share/pam/" + path.rpartition(b"/")[2]
        if not self._as_known(template):
            return False
        folder = b"/usr/share/pam-configs"
        profiles = [folder + b"/" + name for name in _names(self._judge.world.under(folder))]
        said = [self._small(profile) for profile in profiles if self._as_known(profile)]
        return pam.made_of(self._small(path), self._small(template), said)

    def _as_known(self, path: bytes) -> bool:
        watch = self._judge.plan.decide(os.fsdecode(path))
        return watch is not None and self._judge.look(path, watch) == self._references.lookup(path)

    def _small(self, path: bytes) -> bytes:
        try:
            fd = os.open(self._judge.world.under(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return b""
        with open(fd, "rb") as file:
            return file.read(CERTIFICATES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _template(unit: bytes) -> bytes:
    stem, at, instance = unit.partition(b"@")
    return stem + b"@." + instance.rpartition(b".")[2] if at else unit


def _names(folder: bytes) -> list[bytes]:
    try:
        return sorted(os.listdir(folder))[:1000]
    except OSError:
        return []


def source_of(match: re.Match[bytes]) -> bytes:
    return match["folder"] + b"/" + match["stem"] + b".py"


def _bare(certificate: bytes) -> bytes:
    return b"".join(certificate.split())
