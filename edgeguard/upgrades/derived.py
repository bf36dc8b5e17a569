"""Files that no .deb holds, made on the device out of what is in one: compiled modules, links, caches, boot images.

Where a file can be made again or follows from names alone, that is checked, whoever made it. Where it cannot (a boot
image), it counts only if dpkg or a child of it made it, as the kernel said; or, where the kernel did not say who,
if its inode changed while the transaction ran. That is weaker, and the summary says how many there were.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec.layers import ABSENT, Lookup
from edgeguard.codec.manifest import Entry
from edgeguard.upgrades.judge import Judge
from edgeguard.upgrades.kinds import (
    ALTERNATIVE,
    BY_DPKG,
    BY_OTHERS,
    BY_UNKNOWN,
    CACHES,
    CERTIFICATE,
    ENABLED,
    PAM,
    PYC,
    RUNLEVEL,
    UNITS,
)

COMPILE_S = 600  # a thousand modules on a slow board
CERTIFICATES_MAX = 16 << 20


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
        if before is not None and seen.xattrs != before.xattrs:
            return None
        return seen if self._right(held, seen) else None

    def _right(self, held: Held, seen: Entry) -> bool:
        if PYC.fullmatch(held.path):
            return seen.type == "file" and self._modules.get(held.path, b"") == seen.sha256
        if seen.type == "symlink":
            return held.maker != BY_OTHERS and self._link(held.path, seen.target)
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
        if seen.sha256 in self._judge.vouched and self._made(held, count=False):
            return True
        new = self._references.lookup(held.path) is None and seen.category in ("config", "script")
        if not new or held.maker != BY_DPKG:
            return False
        named = re.search(re.escape(held.path) + rb"(?![\w./-])", self._judge.scripts) is not None
        self.unproven += named
        return named

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
        return CACHES.fullmatch(held.path) is not None and held.maker == BY_DPKG

    # -- links

    def _target(self, path: bytes, target: bytes) -> bytes:
        joined = target if target.startswith(b"/") else path.rpartition(b"/")[0] + b"/" + target
        return self._judge.world.located(os.path.normpath(joined))

    def _known(self, path: bytes) -> bool:
        return self._references.lookup(path) is not None

    def _link(self, path: bytes, target: bytes) -> bool:
        place = self._target(path, target)
        if ALTERNATIVE.fullmatch(path):
            return self._known(place) or self._unwatched(place)
        if ALTERNATIVE.fullmatch(place):
            return True  # where it leads from there is what the line above is about
        if ENABLED.fullmatch(path):
            return UNITS.fullmatch(place) is not None and self._unit(place)
        if match := RUNLEVEL.fullmatch(path):
            return place == b"/etc/init.d/" + match["name"] and self._known(place)
        if CERTIFICATE.fullmatch(path):
            inside = CERTIFICATE.fullmatch(place) is not None
            return inside or (place.startswith(b"/usr/share/ca-certificates/") and self._known(place))
        inside = path.startswith(b"/etc/") or CACHES.fullmatch(path) is not None
        return inside and self._known(place)

    def _unit(self, place: bytes) -> bool:
        """An instance of a template is not there by itself."""
        stem, at, instance = place.partition(b"@")
        template = stem + b"@." + instance.rpartition(b".")[2] if at else place
        return self._known(place) or self._known(template)

    def _unwatched(self, place: bytes) -> bool:
        """A manual page or a picture, say, that no watch reads."""
        watch = self._judge.plan.decide(os.fsdecode(place))
        return watch is None or watch.only == "setid"

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
                    python, [self._judge.world.under(source) for source in sources], optimize, self._scratch
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
        """What pam-auth-update makes: each line calls a module just as some package's profile says."""
        known = b""
        for folder in (b"/usr/share/pam-configs", b"/usr/share/pam"):
            for name in _names(self._judge.world.under(folder)):
                if self._as_known(inner := folder + b"/" + name):
                    known += b" ".join(self._small(inner).split()) + b" "
        for line in self._small(path).split(b"\n"):
            words = PAM_LINE.fullmatch(line.partition(b"#")[0].strip())
            if words is not None and b" ".join(words["call"].split()) + b" " not in known:
                return False
            if words is None and line.strip() and not line.startswith(b"#"):
                return False
        return bool(known)

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


PAM_LINE = re.compile(rb"[a-z]+\s+(?:\[[^\]]*\]|[a-z]+)\s+(?P<call>\S.*)")


def _names(folder: bytes) -> list[bytes]:
    try:
        return sorted(os.listdir(folder))[:1000]
    except OSError:
        return []


def source_of(match: re.Match[bytes]) -> bytes:
    return match["folder"] + b"/" + match["stem"] + b".py"


def _bare(certificate: bytes) -> bytes:
    return b"".join(certificate.split())


def compiled(python: str, sources: Sequence[bytes], optimize: int, scratch: str) -> dict[bytes, bytes]:
    """What py3compile makes of modules, as SHA-256 by source: the same program with the same options, elsewhere.

    Nothing of a source is run: it is compiled, and that is all.
    """
    found: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=scratch) as folder:
        words = [python, "-E", "-S", *(["-" + "O" * optimize] if optimize else []), "-X", f"pycache_prefix={folder}"]
        try:
            subprocess.run(
                [*words, "-m", "py_compile", "-"],
                input=b"\n".join(sources) + b"\n",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                timeout=COMPILE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return found
        for above, _, names in os.walk(os.fsencode(folder)):
            for name in names:
                source = above[len(folder) :] + b"/" + name.partition(b".cpython-")[0] + b".py"
                with open(above + b"/" + name, "rb") as file:
                    found[source] = sha256(file.read()).digest()
    return found
