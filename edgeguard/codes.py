"""The table of finding codes: what each is called, why it is bad, what to do. From codes.toml, beside this file.

`explain`, the policy compiler, the journal's catalogue, the man page and docs/findings.md all read it here. The
daemon only needs `message_id`, which reads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from edgeguard.codec import sha

FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "codes.toml")
NAMESPACE = b"edgeguard.org/finding/"  # never to be changed: people filter their journals by what comes of it


class Code(NamedTuple):
    """What is always true of one kind of finding."""

    code: str  # EG-FILE-002
    title: str
    severity: str  # by default; a rule may say another
    rationale: str
    fix: str
    references: tuple[str, ...]  # CIS, ETSI EN 303 645, IEC 62443-4-2
    attack: tuple[str, ...]  # MITRE ATT&CK technique ids


def load(path: str = FILE) -> Mapping[str, Code]:
    """Every code, in the order of the file. The file is part of the program: a fault in it is a bug and stays loud."""
    import tomllib  # 2.5 MB of private memory: only for who shows texts, never in the daemon

    with open(path, "rb") as file:
        document = tomllib.load(file)
    return {
        code: Code(
            code,
            entry["title"],
            entry["severity"],
            entry["rationale"],
            entry["fix"],
            tuple(entry["references"]),
            tuple(entry["attack"]),
        )
        for code, entry in document.items()
    }


def message_id(code: str) -> str:
    """The journal's MESSAGE_ID of a code: 128 bits in hex, shaped as a UUID of version 8 (RFC 9562: own making)."""
    digest = sha.new()
    digest.update(NAMESPACE + code.encode())
    raw = bytearray(digest.digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return raw.hex()
