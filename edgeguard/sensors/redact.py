"""Secrets in command lines: what must not leave the process that was given it. One pure function.

Arguments go into findings, logs and another machine's database, so a password on a command line must not. Better a
word too many is covered than one too few; that something was covered is always visible (***).
"""

from __future__ import annotations

import re

COVER = "***"
ITEM_MAX = 256  # characters of one argument that are kept
ARGV_MAX = 2048  # characters of a whole command line that are kept
CUT = "…"

_WORD = (
    r"(?:pass(?:wd|word|phrase)?|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|auth(?!ors?\b)|credentials?|psk)"
)
# Bounded and anchored at the start of a word: a hostile argument must not cost quadratic time.
_NAME = rf"(?<![\w.-])[\w.-]{{0,64}}{_WORD}[\w.-]{{0,32}}"
# --password=x, password=x, -Dtoken=x, "Authorization: Bearer x" and {"token": "x"} inside one argument
_ASSIGNED = re.compile(rf"(?i)({_NAME}[\"']?\s?[=:]\s?[\"']?)([^\s\"'&;,]+)")
_OPTION = re.compile(rf"(?i)--?[\w.-]{{0,64}}{_WORD}\Z")  # --password x: the next argument is the secret
_URL = re.compile(r"([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}:)([^/\s@]{1,256})(?=@)", re.IGNORECASE)
_HEADER = re.compile(r"(?i)\b(bearer|basic|digest)(\s+)([\w.~+/=-]{4,})")
# Programs whose -pSECRET, -p SECRET, -u user:SECRET are passwords; elsewhere -p is a port or a path.
_GLUED = {"mysql": "p", "mariadb": "p", "mysqldump": "p", "mysqladmin": "p", "mongo": "p", "mongosh": "p"}
_NEXT = {
    "sshpass": ("-p",),
    "ldapsearch": ("-w",),
    "smbclient": ("-U",),
    "redis-cli": ("-a",),
    "mosquitto_pub": ("-P",),
}
_NEXT |= {"mosquitto_sub": ("-P",), "mongo": ("-p",), "mongosh": ("-p",), "ipmitool": ("-P",)}
_USER_PAIR = {"curl": ("-u", "--user", "-U", "--proxy-user")}


def redact(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments with secrets covered, each and all of them cut to their bounds."""
    if not argv:
        return ()
    program = argv[0].rpartition("/")[2]
    kept: list[str] = [_cut(argv[0])]
    left = ARGV_MAX - len(kept[0])
    previous = ""
    for index, item in enumerate(argv[1:], 1):
        if left <= 0:
            kept.append(CUT)
            break
        text = _cut(_item(program, index, previous, item))
        kept.append(text)
        left -= len(text)
        previous = item
    return tuple(kept)


def _item(program: str, index: int, previous: str, item: str) -> str:
    if program == "wpa_passphrase" and index == 2:
        return COVER
    glued = "-" + _GLUED.get(program, "\0")
    if item.startswith(glued) and len(item) > len(glued):
        return glued + COVER
    told = previous in _NEXT.get(program, ()) or (_OPTION.match(previous) and not previous.startswith(glued))
    if told and not item.startswith("--"):
        return COVER
    if previous in _USER_PAIR.get(program, ()) and ":" in item:
        return item.partition(":")[0] + ":" + COVER
    return _inside(item[: 4 * ITEM_MAX])


def _inside(item: str) -> str:
    """Secrets that are part of an argument."""
    item = _HEADER.sub(lambda found: found[1] + found[2] + COVER, item)
    item = _URL.sub(lambda found: found[1] + COVER, item)
    return _ASSIGNED.sub(lambda found: found[1] + COVER, item)


def _cut(item: str) -> str:
    return item if len(item) <= ITEM_MAX else item[: ITEM_MAX - 1] + CUT
