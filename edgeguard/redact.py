"""Secrets in command lines and texts are replaced before anything is stored, shown or sent. Pure.

This is a net for the common ways in which programs are handed passwords, not a proof: a secret that looks like any
other word stays. Whoever starts programs should not put secrets on command lines.
"""

from __future__ import annotations

import re

MARK = "[redacted]"

_WORD = (
    r"pass(?:w(?:or)?d|phrase)?|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth[-_]?key|psk"
)
# --password=x, PGPASSWORD=x, token:x, "secret": "x"
_ASSIGNED = re.compile(rf"(?i)((?:^|[\s;&?,{{'\"-])[\w.-]*(?:{_WORD})[\w-]*['\"]?\s*[=:]\s*['\"]?)([^\s'\"&;,]+)")
# the flag alone; the secret is the next argument
_FLAG = re.compile(rf"(?i)^-{{1,2}}[\w-]*(?:{_WORD})$")
# the same inside one text, as in sh -c "mysql --password x"
_FLAGGED = re.compile(rf"(?i)((?:^|\s)--?[\w-]{{0,64}}(?:{_WORD})\s+)([^\s-]\S*)")
_URL = re.compile(r"(\b[a-zA-Z][\w+.-]{1,20}://[^\s/:@]{0,256}:)([^\s/@]{1,256})(@)")
_BEARER = re.compile(r"(?i)(\bbearer\s+|\bauthorization:\s*\w+\s+)([\w.~+/=-]{4,})")
_SHAPES = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_\w{20,}\b|\bglpat-[\w-]{16,}\b|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|\bsk-[\w-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*",
    re.DOTALL,
)
# program -> short options whose value is a secret, either attached (-pX) or, where allowed, the next argument
_SHORT = {"mysql": "-p", "mysqldump": "-p", "mysqladmin": "-p", "mariadb": "-p", "sshpass": "-p"}
_NEXT = {"sshpass": ("-p",), "curl": ("-u", "--user", "-U", "--proxy-user"), "wget": (), "redis-cli": ("-a",)}


def text(value: str) -> str:
    """`value` without what looks like a secret."""
    value = _URL.sub(rf"\1{MARK}\3", value)
    value = _BEARER.sub(rf"\1{MARK}", value)
    value = _FLAGGED.sub(rf"\1{MARK}", value)
    value = _ASSIGNED.sub(rf"\1{MARK}", value)
    return _SHAPES.sub(MARK, value)


def arguments(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A command line without what looks like a secret. Always as many arguments as before."""
    if len(argv) < 2:
        return tuple(map(text, argv))
    program = argv[0].rpartition("/")[2]
    short, following = _SHORT.get(program, ""), _NEXT.get(program, ())
    kept = [text(argv[0])]
    secret_next = False
    for argument in argv[1:]:
        if secret_next:
            kept.append(MARK)
            secret_next = False
        elif short and argument.startswith(short) and len(argument) > len(short):
            kept.append(short + MARK)
        elif argument in following or _FLAG.match(argument):
            kept.append(argument)
            secret_next = True
        else:
            kept.append(text(argument))
    return tuple(kept)
