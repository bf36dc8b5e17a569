"""What changed in a text file: a bounded unified diff, and plain sentences where the format is known. Pure.

`compare` takes both contents and gives both, with secrets covered. Whose content is compared with what, and where an
earlier one is kept, is in `sensors.copies`. Each format that has sentences is a module here and a line in TABLE; a
module gives an iterator of sentences for (old text, new text) and covers what it quotes with `secrets.line`.

Loaded when something differs, and only then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

from edgeguard.sensors.changes import secrets
from edgeguard.sensors.changes.unified import unified

LINES_MAX = 3000  # of a text that is compared; 64 KiB of settings have some 2,000
SENTENCES_MAX = 12
SENTENCE_MAX = 200  # characters; a command line in it is told as far as that
SENTENCES_BYTES = 2048  # of all of them, in UTF-8
MORE = "and more"
ONLY_FORM = "nothing that counts: only comments, blanks or the order of lines"

TABLE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"/etc/crontab\Z|/etc/cron\.d/[^/]+\Z"), "cron:system"),
    (re.compile(r"/var/spool/cron/crontabs/[^/]+\Z"), "cron:personal"),
    (re.compile(r"/etc/sudoers\Z|/etc/sudoers\.d/[^/]+\Z"), "sudoers:tell"),
    (re.compile(r"/etc/ssh/sshd_config\Z|/etc/ssh/sshd_config\.d/[^/]+\Z"), "sshd:tell"),
    (re.compile(r"/etc/passwd-?\Z"), "accounts:passwd"),
    (re.compile(r"/etc/shadow-?\Z"), "accounts:shadow"),
    (re.compile(r"/etc/group-?\Z"), "accounts:group"),
    (re.compile(r"/etc/gshadow-?\Z"), "accounts:gshadow"),
    (
        re.compile(
            r"/(?:.*/)?systemd/(?:.*/)?[^/]+\."
            r"(?:service|socket|timer|path|mount|automount|swap|target|slice|scope|conf|network|netdev|link|nspawn)\Z"
        ),
        "units:tell",
    ),
)
"""Path -> module and function."""


class Told(NamedTuple):
    """What is said of a change. A remark stands in brackets where no difference can be shown."""

    diff: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def compare(path: str, old: bytes, new: bytes) -> Told:
    """Both contents of the file at `path`; b"" for one that was, or is, not there."""
    before, after = _text(old), _text(new)
    if before is None or after is None:
        side = "what is there now" if before is not None else "what was there before"
        return Told((f"(not shown: {side} is no text in UTF-8)",))
    if max(before.count("\n"), after.count("\n")) > LINES_MAX:
        return Told((f"(not shown: more than {LINES_MAX} lines)",), sentences(path, before, after))
    return Told(unified(secrets.lines(before), secrets.lines(after)), sentences(path, before, after))


def sentences(path: str, old: str, new: str) -> tuple[str, ...]:
    """What the change means, in plain words; () for a format that is not known here."""
    for pattern, name in TABLE:
        if pattern.match(path):
            module, _, function = name.partition(":")
            tell: Callable[[str, str], Iterator[str]] = getattr(import_module(f"{__name__}.{module}"), function)
            return _bounded(tell(old, new)) or (ONLY_FORM,)
    return ()


def _bounded(said: Iterator[str]) -> tuple[str, ...]:
    kept: list[str] = []
    left = SENTENCES_BYTES
    for sentence in said:
        short = sentence if len(sentence) <= SENTENCE_MAX else sentence[: SENTENCE_MAX - 1] + "…"
        left -= len(short.encode("utf-8", "surrogatepass"))
        if len(kept) == SENTENCES_MAX or left < 0:
            kept.append(MORE)  # how many is not counted: each would be made for nothing
            break
        kept.append(short)
    return tuple(kept)


def _text(data: bytes) -> str | None:
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
