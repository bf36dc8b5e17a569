"""Does a file /etc/pam.d/common-* say what pam-auth-update makes of its template and of profiles, and nothing else?

The template's own lines must all be there, in order: without the one that denies, a stack lets everybody in. What
stands in its two blocks must be a profile's line, and a jump out of the first block must land behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_LINE = re.compile(rb"(?P<kind>[a-z]+)\s+(?P<control>\[[^\]]*\]|[a-z]+)\s+(?P<call>\S.*)")
_PROFILE_LINE = re.compile(rb"\s+(?P<control>\[[^\]]*\]|[a-z]+)\s+(?P<call>\S.*)")
_FIELD = re.compile(rb"(?P<name>[A-Za-z]+)(?:-Initial|-Final)?:\s*")
_NOTHING = (b"[default=1]", b"pam_permit.so")  # stands for a first block without modules; fine where nobody is let in
_JUMP = re.compile(rb"(?<==)(end|\d+)")


class Line(NamedTuple):
    """One call of a module."""

    kind: bytes  # auth, account, password, session
    control: bytes
    call: bytes  # module and arguments, one blank between them


def made_of(text: bytes, template: bytes, profiles: Iterable[bytes]) -> bool:
    """`text` is the file; `template` the one of /usr/share/pam, `profiles` those of /usr/share/pam-configs."""
    known = {Line(line.kind, _JUMP.sub(b"end", line.control), line.call): line for line in _lines_of(profiles)}
    left = list(_lines(text))
    if None in left:
        return False
    said = [line for line in left if line is not None]
    for row in template.split(b"\n"):
        word = row.partition(b"#")[0].strip()
        if word.startswith(b"$"):
            said = _behind_block(said, known, primary=word.endswith(b"_primary"))
        elif word:
            if not said or said[0] != _line(word):
                return False
            said = said[1:]
    return not said


def _behind_block(said: list[Line], known: dict[Line, Line], *, primary: bool) -> list[Line]:
    """What follows the lines that are a profile's."""
    if primary and said and said[0].kind == b"session" and said[0][1:] == _NOTHING:
        return said[1:]
    length = 0
    while length < len(said):
        line = said[length]
        if line._replace(control=_JUMP.sub(b"end", line.control)) not in known:
            break
        length += 1
    for at, line in enumerate(said[:length]):
        profile = known[line._replace(control=_JUMP.sub(b"end", line.control))]
        behind = length - at - 1 + primary  # modules of the block, and the one that denies
        if line.control != profile.control.replace(b"=end", b"=%d" % behind):
            return said[at:]
    return said[length:]


def _lines(text: bytes) -> Iterator[Line | None]:
    """None: something that is no call of a module, such as the inclusion of another file."""
    for line in text.replace(b"\\\n", b" ").split(b"\n"):
        if words := line.partition(b"#")[0].strip():
            yield _line(words)


def _line(words: bytes) -> Line | None:
    match = _LINE.fullmatch(words)
    return Line(match["kind"], _plain(match["control"]), _plain(match["call"])) if match else None


def _lines_of(profiles: Iterable[bytes]) -> Iterator[Line]:
    for profile in profiles:
        kind = b""
        for line in profile.split(b"\n"):
            if field := _FIELD.fullmatch(line):
                kind = field["name"].lower()
            elif kind and (match := _PROFILE_LINE.fullmatch(line.rstrip())):
                yield Line(kind, _plain(match["control"]), _plain(match["call"]))


def _plain(words: bytes) -> bytes:
    return b" ".join(words.split())
