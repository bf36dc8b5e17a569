"""passwd, shadow, group, gshadow and authorized_keys taken apart. Pure.

No hash and no key leaves this file: of a password only its state, of a key only its fingerprint.
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.codec import sha

FILE_MAX = 4 * 1024 * 1024  # bytes of passwd and its like; 10,000 accounts give about 1 MiB
KEYS_MAX = 1024 * 1024  # bytes of one authorized_keys file
ENTRIES_MAX = 20_000  # lines that are taken from one file
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
    for fields in _rows(data):
        nis = fields[0][:1] in (b"+", b"-")
        if not nis and (len(fields) != 7 or not fields[0] or not fields[2].isdigit() or not fields[3].isdigit()):
            continue  # no such line is an account for the C library
        name, password, uid, gid, _, home, shell = [*fields, *[b""] * 7][:7]
        yield User(_text(name), password_state(password), _number(uid), _number(gid), _text(home), _text(shell), nis)


def groups(data: bytes) -> Iterator[Group]:
    for fields in _rows(data):
        nis = fields[0][:1] in (b"+", b"-")
        if not nis and (len(fields) != 4 or not fields[0] or not fields[2].isdigit()):
            continue
        name, _, gid, members = [*fields, *[b""] * 4][:4]
        yield Group(_text(name), _number(gid), _names(members), nis)


def shadow(data: bytes, today: int) -> dict[str, str]:
    """Name to password state. `today` in days since 1970, as the file counts."""
    states: dict[str, str] = {}
    for fields in _rows(data):
        if len(fields) < 2:
            continue
        state = password_state(fields[1])
        expires = fields[7] if len(fields) > 7 else b""
        if state in ("set", "none") and expires.isdigit() and _number(expires) < today:
            state = "expired"
        states.setdefault(_text(fields[0]), "locked" if state == "shadow" else state)
    return states


def group_shadow(data: bytes) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Group name to password state and administrators. Without a password only members may enter: that is locked."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for fields in _rows(data):
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
    """The keys of an authorized_keys file, and how many lines are none although they look as if they should be."""
    found: list[Key] = []
    malformed = 0
    for line in data.split(b"\n", ENTRIES_MAX)[:ENTRIES_MAX]:
        text = line.strip(b" \t\r")
        if not text or text.startswith(b"#"):
            continue
        key = _key(text) if len(text) <= KEY_LINE_MAX else None
        if key is None:
            malformed += 1
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


def _rows(data: bytes) -> Iterator[list[bytes]]:
    for line in data.split(b"\n", ENTRIES_MAX)[:ENTRIES_MAX]:
        if line and not line.startswith(b"#"):
            yield line.split(b":")


def _names(field: bytes) -> tuple[str, ...]:
    return tuple(sorted(_text(name) for name in field.split(b",") if name))


def _number(field: bytes) -> int:
    """Ids are 32 bits; what is longer wraps in some readers and is refused by others: -1 says "no number"."""
    return int(field) if field.isdigit() and len(field) <= 10 else -1


def _text(field: bytes) -> str:
    return os.fsdecode(field)
