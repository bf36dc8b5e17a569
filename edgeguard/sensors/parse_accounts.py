"""passwd, shadow, group, gshadow and authorized_keys taken apart. Pure.

No hash and no key leaves this file: of a password only its state, of a key only its fingerprint.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from edgeguard.codec import sha

FILE_MAX = 4 * 1024 * 1024  # bytes of passwd and its like; 10,000 accounts give about 1 MiB
KEYS_MAX = 1024 * 1024  # bytes of one authorized_keys file
ENTRIES_MAX = 20_000  # accounts or groups that are taken from one file; comments and empty lines do not count
FILE_KEYS_MAX = 500  # keys that are taken from one file; a server that many people share has some dozens
KEY_LINE_MAX = 16 * 1024  # bytes; sshd's own bound is of this size, an RSA-16384 key has 2.8 KiB
OPTION_MAX = 1024  # bytes of one option that are kept
COMMENT_MAX = 256  # bytes

# What these may do amounts to root: by sudo, by raw disks or memory, by hashes, by containers, by /usr/local.
PRIVILEGED = frozenset(
    (
        "root",
        "sudo",
        "wheel",
        "admin",
        "edgeguard-admin",
        "shadow",
        "disk",
        "kmem",
        "docker",
        "lxd",
        "incus-admin",
        "libvirt",
        "staff",
    )
)
ID_MAX = 0xFFFFFFFF
_BLANKS = b" \t\n\v\f\r"
_LINES = re.compile(rb"^[ \t\v\f\r]*([^\s#\0][^\n]*)", re.MULTILINE)
_KEY_LINES = re.compile(rb"^[ \t\r]*([^ \t\r\n#][^\n]*)", re.MULTILINE)
_KEY_TYPES = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-", "rsa-sha2-")


class User(NamedTuple):
    name: str
    password: str  # the state that passwd alone gives; "shadow" when it is kept there
    uid: int
    gid: int
    home: str
    shell: str
    nis: bool  # a "+" or "-" line: accounts come from elsewhere


class Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]
    nis: bool


class Key(NamedTuple):
    fingerprint: str
    type: str
    comment: str
    options: tuple[str, ...]


def users(data: bytes) -> Iterator[User]:
    """What the C library takes for an account (fgetpwent_r, files-parse.c), and that is more than tools write: blanks
    before the name, a sign or blanks before a number, no fields after the group, colons in the shell."""
    for fields in rows(data, 7):
        nis = fields[0][:1] in (b"+", b"-")
        name, password, uid, gid, _, home, shell = [*fields, *[b""] * 7][:7]
        if not nis and (_number(uid) < 0 or _number(gid) < 0):
            continue  # no such line is an account for the C library
        yield User(_text(name), password_state(password), _number(uid), _number(gid), _text(home), _text(shell), nis)


def groups(data: bytes) -> Iterator[Group]:
    for fields in rows(data, 4):
        nis = fields[0][:1] in (b"+", b"-")
        name, _, gid, members = [*fields, *[b""] * 4][:4]
        if not nis and _number(gid) < 0:
            continue
        yield Group(_text(name), _number(gid), _names(members), nis)


def shadow(data: bytes, today: int) -> dict[str, str]:
    """Name to password state. `today` in days since 1970, as the file counts."""
    states: dict[str, str] = {}
    for fields in rows(data):
        if len(fields) < 2:
            continue
        state = password_state(fields[1])
        expires = fields[7] if len(fields) > 7 else b""
        if state in ("set", "none") and expires.isdigit() and 0 <= _number(expires) < today:
            state = "expired"
        states.setdefault(_text(fields[0]), "locked" if state == "shadow" else state)
    return states


def group_shadow(data: bytes) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Group name to password state and administrators. Without a password only members may enter: that is locked."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for fields in rows(data):
        if len(fields) >= 3:
            state = "set" if password_state(fields[1]) == "set" else "locked"
            found.setdefault(_text(fields[0]), (state, _names(fields[2])))
    return found


def password_state(field: bytes) -> str:
    """ "none": logs in without one. "locked": no password fits. "shadow": look there. "set": there is a hash."""
    if not field:
        return "none"
    if field == b"x":
        return "shadow"
    # crypt(3): a hash begins with "$" (or "_", or is 13 characters of DES) and never holds "!" or "*".
    return "locked" if field[:1] in b"!*" or len(field) < 13 else "set"


def keys(data: bytes) -> tuple[list[Key], int]:
    """The keys of an authorized_keys file, and how many lines are none although they look as if they should be: not
    understood, too long, or one too many (then the rest is not counted)."""
    found: list[Key] = []
    malformed = 0
    for match in _KEY_LINES.finditer(data):
        text = match[1].rstrip(b" \t\r")
        key = _key(text) if len(text) <= KEY_LINE_MAX and len(found) < FILE_KEYS_MAX else None
        if key is None:
            malformed += 1
            if malformed >= FILE_KEYS_MAX or len(found) >= FILE_KEYS_MAX:
                break
        else:
            found.append(key)
    return found, malformed


def _key(line: bytes) -> Key | None:
    """[options] type base64 [comment]; the type inside the key decides, as for sshd."""
    options: tuple[str, ...] = ()
    if not _is_type(line):
        options, line = _options(line)
    fields = line.split(None, 2)
    if len(fields) < 2 or not _is_type(fields[0]):
        return None
    try:
        blob = binascii.a2b_base64(fields[1], strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    length = int.from_bytes(blob[:4], "big")
    kind = blob[4 : 4 + length]
    if len(blob) < 16 or not kind.isascii() or len(kind) != length or not _is_type(kind + b" "):
        return None
    value = sha.new()
    value.update(blob)
    digest = binascii.b2a_base64(value.digest(), newline=False).rstrip(b"=").decode()
    comment = _text(fields[2][:COMMENT_MAX]) if len(fields) > 2 else ""
    return Key(f"SHA256:{digest}", kind.decode(), comment, options)


def _is_type(line: bytes) -> bool:
    return line.split(None, 1)[0].decode("ascii", "replace").startswith(_KEY_TYPES) if line.strip() else False


def _options(line: bytes) -> tuple[tuple[str, ...], bytes]:
    """Options up to the first blank outside quotes, split at commas outside quotes; and the rest of the line."""
    out: list[str] = []
    quoted = False
    start = index = 0
    while index < len(line):
        char = line[index : index + 1]
        if char == b"\\" and line[index + 1 : index + 2] == b'"':
            index += 1
        elif char == b'"':
            quoted = not quoted
        elif not quoted and char in b", \t":
            out.append(_text(line[start:index][:OPTION_MAX]))
            start = index + 1
            if char != b",":
                break
        index += 1
    return tuple(out), line[index:].lstrip(b" \t")


def subordinates(data: bytes) -> Iterator[tuple[str, int, int]]:
    """subuid or subgid: (user's name or number, first id, how many)."""
    for fields in rows(data, 3):
        if len(fields) == 3 and _number(fields[1]) >= 0 and _number(fields[2]) > 0:
            yield _text(fields[0]), _number(fields[1]), _number(fields[2])


def rows(data: bytes, fields_max: int = 16) -> Iterator[list[bytes]]:
    """Lines in fields, the last one with all that is left. Blanks in front are passed over; a NUL ends a line.

    A pattern finds them, so that a million empty lines cost no million turns.
    """
    for match in islice(_LINES.finditer(data), ENTRIES_MAX):
        yield match[1].partition(b"\0")[0].split(b":", fields_max - 1)


def _names(field: bytes) -> tuple[str, ...]:
    return tuple(sorted(_text(name) for item in field.split(b",") if (name := item.lstrip(_BLANKS))))


def _number(field: bytes) -> int:
    """An id as strtoul() reads it: blanks, a sign, digits. -1 says "no number", or one of more than 32 bits."""
    text = field.lstrip(_BLANKS)
    negative = text.startswith(b"-")
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    if not digits.isdigit():
        return -1
    digits = digits.lstrip(b"0") or b"0"
    number = int(digits) if len(digits) <= 10 else ID_MAX + 1
    return number if number <= ID_MAX and not (negative and number) else -1


def _text(field: bytes) -> str:
    return os.fsdecode(field)
