"""Which accounts that came or went during a transaction its packages made or took away.

One that came is explained if the signed scripts of a package name it where they make one, or if a package's sysusers.d
file, as signed, declares it; one that went, if the known postrm of a package that went names it. And it was dpkg or a
child of it, or the kernel did not say who. What amounts to more than an account of the system never comes this far
(`kinds.quiet_account`); here it must have a number of its own and the shell that the package asks for, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edgeguard.model import Columns
from edgeguard.upgrades import account_lines
from edgeguard.upgrades.archive import NOBODY
from edgeguard.upgrades.expected import Owner, mark
from edgeguard.upgrades.judge import Judge, Pending
from edgeguard.upgrades.kinds import BY_OTHERS

SYSUSERS = b"/usr/lib/sysusers.d"
FILES_MAX = 1000  # sysusers.d files of one transaction
_NO_LOGIN = ("/usr/sbin/nologin", "/sbin/nologin", "/usr/bin/false", "/bin/false")


class Held(NamedTuple):
    """An account that waits: it came with these columns, or went (None)."""

    subject: str
    maker: int
    columns: Columns | None


class Accounts:
    """`eye` has judged the files of these transactions."""

    def __init__(self, eye: Judge, pending: Sequence[Pending]) -> None:
        self._eye = eye
        self._made: dict[str, list[tuple[str, str]]] = {}  # subject -> (package, the shell that it asks for)
        self._taken: dict[str, str] = {}  # subject -> package
        for item in pending:
            owners = item.expected.owners
            for owner in owners:
                if not owner.version:
                    self._went(owner, item.expected.began)
                elif self._stands(owner):
                    self._note(account_lines.made(owner.scripts), owner)
            for owner, text in self._declarations(item):
                self._note(account_lines.declared(text), owner)

    def explained(self, held: Sequence[Held]) -> dict[str, tuple[str, Columns | None]]:
        """Subject -> (package, what it is to be from now on)."""
        found: dict[str, tuple[str, Columns | None]] = {}
        for item in held:
            if item.columns is None:
                package = self._taken.get(item.subject, "")
            else:
                package = self._bringer(item.subject, item.columns)
            if package and item.maker != BY_OTHERS:
                found[item.subject] = (package, item.columns)
        return found

    def _bringer(self, subject: str, columns: Columns) -> str:
        kind, _, name = subject.partition(" ")
        number = columns.get("uid" if kind == "user" else "gid")
        if not isinstance(number, int) or not self._eye.world.alone(kind, name, number):
            return ""
        for package, shell in self._made.get(subject, ()):
            if kind == "group" or columns.get("shell") in (*_NO_LOGIN, shell):
                return package
        return ""

    def _stands(self, owner: Owner) -> bool:
        return owner.word != NOBODY and self._eye.stands(owner)

    def _note(self, said: dict[str, str], owner: Owner) -> None:
        for subject, shell in said.items():
            self._made.setdefault(subject, []).append((owner.name, shell))

    def _went(self, owner: Owner, began: int) -> None:
        if self._eye.took_away(owner, began):
            self._taken |= dict.fromkeys(account_lines.taken(owner.scripts), owner.name)

    def _declarations(self, item: Pending) -> Iterator[tuple[Owner, bytes]]:
        """The sysusers.d files of packages that are vouched for, where they lie as they were signed."""
        for count, (path, entry) in enumerate(item.reader.below(SYSUSERS)):
            owner = item.expected.owners[mark(entry)[0]]
            if count >= FILES_MAX:
                return
            if not path.endswith(b".conf") or not entry.digest or not self._stands(owner):
                continue
            text = self._eye.world.read(path)
            if self._eye.eye.digester.digest(text) == entry.digest:
                yield owner, text
