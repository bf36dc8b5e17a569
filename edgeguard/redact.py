"""Secrets in command lines and texts are covered before anything is stored, shown or sent. Pure.

The patterns are shared: whole files, where a secret may have several lines, are covered with them by
`sensors.changes.secrets`.

This is a net for the common ways in which programs are handed passwords, not a proof: a secret that looks like any
other word stays. Better a word too many is covered than one too few; that something was covered is visible (***).

Anybody writes command lines, comments of keys and names of files, and the resident daemon looks for secrets in them.
So every pattern begins at the start of a word and is bounded: no text costs more than linear time.
"""

from __future__ import annotations

import re

COVER = "***"
ITEM_MAX = 256  # characters of one argument that are shown
ARGV_MAX = 2048  # characters of a whole command line that are shown
CUT = "…"

WORD = (
    r"(?:pass(?:wd|word|phrase)?|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|pre[-_]?shared[-_]?key|auth(?!ors?\b|orit|oris|oriz)|credentials?|psk|(?:bind|root|admin)pw)"
)
NAME = rf"(?<![\w.-])[\w.-]{{0,64}}{WORD}[\w.-]{{0,32}}"
# --password=x, PGPASSWORD=x, -Dtoken=x, and {"token": "x"} inside one text
_ASSIGNED = re.compile(rf"(?i)({NAME}[\"']?\s?[=:]\s?[\"']?)([^\s\"'&;,]+)")
_OPTION = re.compile(rf"(?i)--?[\w.-]{{0,64}}{WORD}\Z")  # --password x: the next argument is the secret
# the same inside one text, as in sh -c "mysql --password x"
OPTION_INSIDE = re.compile(rf"(?i)(?<!\S)(--?[\w.-]{{0,64}}{WORD}\s{{1,8}})([^\s-]\S*)")
_URL = re.compile(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}:)([^/\s@]{1,256})(?=@)")
HEADER = re.compile(r"(?i)\b(bearer\s{1,8}|authorization:\s{0,8}\w{1,32}\s{1,8})([\w.~+/=-]{4,})")
SHAPES = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bgl(?:pat|dt|rt|cbt)-[\w-]{16,}|\bxox[abeprs]-[\w-]{10,}|\bsk-[\w-]{20,}"
    r"|\bAIza[\w-]{30,}|\bnpm_\w{30,}|\bhf_\w{20,}|\bhooks\.slack\.com/services/[\w/]{8,}"
    r"|(?<![\w.-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*",
    re.DOTALL,
)
# Programs whose -pSECRET, -p SECRET, -u user:SECRET are passwords; elsewhere -p is a port or a path.
_GLUED = {"mysql": "p", "mariadb": "p", "mysqldump": "p", "mysqladmin": "p", "mongo": "p", "mongosh": "p"}
_GLUED |= {"sshpass": "p"}
_NEXT = {
    "sshpass": ("-p",),
    "ldapsearch": ("-w",),
    "smbclient": ("-U",),
    "redis-cli": ("-a",),
    "mosquitto_pub": ("-P",),
}
_NEXT |= {"mosquitto_sub": ("-P",), "mongo": ("-p",), "mongosh": ("-p",), "ipmitool": ("-P",)}
_USER_PAIR = {"curl": ("-u", "--user", "-U", "--proxy-user")}


def text(value: str) -> str:
    """`value` without what looks like a secret."""
    value = HEADER.sub(rf"\1{COVER}", value)
    value = _URL.sub(rf"\1{COVER}", value)
    value = OPTION_INSIDE.sub(rf"\1{COVER}", value)
    value = _ASSIGNED.sub(rf"\1{COVER}", value)
    return SHAPES.sub(COVER, value)


PROGRAMS = frozenset((*_GLUED, *_NEXT, *_USER_PAIR, "wpa_passphrase"))
"""Programs whose arguments must be known to see a secret among them."""


def arguments(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A command line without what looks like a secret. Always as many arguments as before."""
    if not argv:
        return ()
    program = argv[0].rpartition("/")[2]
    rest = (_item(program, index, argv[index - 1], argv[index]) for index in range(1, len(argv)))
    return (text(argv[0]), *rest)


def shown(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The same, each argument and all of them cut to what is shown."""
    kept: list[str] = []
    left = ARGV_MAX
    for item in arguments(tuple(argument[: 4 * ITEM_MAX] for argument in argv[:ARGV_MAX])):
        if left <= 0:
            kept.append(CUT)
            break
        kept.append(item if len(item) <= ITEM_MAX else item[: ITEM_MAX - 1] + CUT)
        left -= len(kept[-1])
    return tuple(kept)


def _item(program: str, index: int, previous: str, item: str) -> str:
    if program == "wpa_passphrase" and index == 2:
        return COVER
    glued = "-" + _GLUED.get(program, "\0")
    if item.startswith(glued) and len(item) > len(glued):
        return glued + COVER
    told = previous in _NEXT.get(program, ()) or (
        index > 1 and _OPTION.match(previous) and not previous.startswith(glued)
    )
    if told and not item.startswith("--"):
        return COVER
    if previous in _USER_PAIR.get(program, ()) and ":" in item:
        return item.partition(":")[0] + ":" + COVER
    return text(item)
