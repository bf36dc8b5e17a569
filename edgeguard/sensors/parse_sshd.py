"""sshd_config as sshd itself understands it: words, first value wins, Match blocks, defaults. Pure.

Files are read by the caller, who hands in `lines` with every Include already replaced by what it includes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

WORDS_MAX = 64  # arguments on one line; sshd itself takes a few more for lists of users
VALUE_MAX = 4096  # bytes of one value; the longest real ones are lists of ciphers

NONE_SET = "(default)"  # value of algorithm lists that nobody set: what they hold depends on sshd's build


class Keyword(NamedTuple):
    default: str
    ranks: tuple[frozenset[str], ...] = ()  # weakest first; () has no order
    lists: bool = False  # every line adds to it, instead of the first one winning
    lower: bool = False  # a smaller number is stronger
    algorithms: bool = False


def _ranked(default: str, ranks: str) -> Keyword:
    return Keyword(default, tuple(frozenset(group.split(",")) for group in ranks.split()))


_OFF_IS_STRONGER = "yes no"
_ON_IS_STRONGER = "no yes"

# Defaults of OpenSSH 9.2 (Debian 12) and 10.0 (Debian 13), which agree in all of these; sshd_config(5), servconf.c.
KEYWORDS: Mapping[str, Keyword] = {
    "permitrootlogin": _ranked("without-password", "yes without-password forced-commands-only no"),
    "passwordauthentication": _ranked("yes", _OFF_IS_STRONGER),
    "permitemptypasswords": _ranked("no", _OFF_IS_STRONGER),
    "kbdinteractiveauthentication": _ranked("yes", _OFF_IS_STRONGER),
    "pubkeyauthentication": _ranked("yes", _ON_IS_STRONGER),
    "hostbasedauthentication": _ranked("no", _OFF_IS_STRONGER),
    "gssapiauthentication": _ranked("no", _OFF_IS_STRONGER),
    "kerberosauthentication": _ranked("no", _OFF_IS_STRONGER),
    "ignorerhosts": _ranked("yes", "no shosts-only yes"),
    "permituserenvironment": _ranked("no", _OFF_IS_STRONGER),
    "permituserrc": _ranked("yes", _OFF_IS_STRONGER),
    "usepam": _ranked("no", _ON_IS_STRONGER),
    "strictmodes": _ranked("yes", _ON_IS_STRONGER),
    "x11forwarding": _ranked("no", _OFF_IS_STRONGER),
    "allowtcpforwarding": _ranked("yes", "yes,all local,remote no"),
    "allowstreamlocalforwarding": _ranked("yes", "yes,all local,remote no"),
    "allowagentforwarding": _ranked("yes", _OFF_IS_STRONGER),
    "disableforwarding": _ranked("no", _ON_IS_STRONGER),
    "gatewayports": _ranked("no", "yes clientspecified no"),
    "permittunnel": _ranked("no", "yes point-to-point,ethernet no"),
    "loglevel": _ranked("INFO", "quiet fatal error info verbose debug,debug1 debug2 debug3"),
    "maxauthtries": Keyword("6", lower=True),
    "maxsessions": Keyword("10", lower=True),
    "authenticationmethods": Keyword("any"),
    "authorizedkeysfile": Keyword(".ssh/authorized_keys .ssh/authorized_keys2"),
    "authorizedkeyscommand": Keyword("none"),
    "authorizedkeyscommanduser": Keyword("none"),
    "authorizedprincipalsfile": Keyword("none"),
    "authorizedprincipalscommand": Keyword("none"),
    "trustedusercakeys": Keyword("none"),
    "revokedkeys": Keyword("none"),
    "forcecommand": Keyword("none"),
    "chrootdirectory": Keyword("none"),
    "permitopen": Keyword("any"),
    "permitlisten": Keyword("any"),
    "addressfamily": Keyword("any"),
    "port": Keyword("22", lists=True),
    "listenaddress": Keyword("any", lists=True),
    "allowusers": Keyword("", lists=True),
    "allowgroups": Keyword("", lists=True),
    "denyusers": Keyword("", lists=True),
    "denygroups": Keyword("", lists=True),
    "acceptenv": Keyword("", lists=True),
    "subsystem": Keyword("", lists=True),
    "setenv": Keyword("", lists=True),
    "hostkey": Keyword(NONE_SET, lists=True),
    "hostkeyagent": Keyword("none"),
    "securitykeyprovider": Keyword("internal"),
    "xauthlocation": Keyword("/usr/bin/xauth"),
    "pamservicename": Keyword("sshd"),
    "sshdsessionpath": Keyword(NONE_SET),
    "sshdauthpath": Keyword(NONE_SET),
    "ciphers": Keyword(NONE_SET, algorithms=True),
    "macs": Keyword(NONE_SET, algorithms=True),
    "kexalgorithms": Keyword(NONE_SET, algorithms=True),
    "hostkeyalgorithms": Keyword(NONE_SET, algorithms=True),
    "pubkeyacceptedalgorithms": Keyword(NONE_SET, algorithms=True),
}
_ALIASES = {
    "challengeresponseauthentication": "kbdinteractiveauthentication",
    "skeyauthentication": "kbdinteractiveauthentication",
    "dsaauthentication": "pubkeyauthentication",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "authorizedkeysfile2": "authorizedkeysfile",
    "keepalive": "tcpkeepalive",
}
_SAME = {"prohibit-password": "without-password"}
_WEAK = ("3des", "arcfour", "blowfish", "cast128", "-cbc", "md5", "sha1", "umac-64", "ssh-dss", "ssh-rsa", "none")


class Setting(NamedTuple):
    keyword: str
    value: str
    level: int
    match: str  # criteria of the Match block, "" for everybody


def settings(lines: Iterable[tuple[str, ...]]) -> Iterator[Setting]:
    """What holds: one for every keyword, and one for every keyword that a Match block sets.

    "Match all" is a block like the others: at login, what a matching block says goes before what stands above it.
    """
    values: dict[tuple[str, str], list[str]] = {}
    match = ""
    for keyword, *arguments in lines:
        if keyword == "match":
            match = " ".join(arguments)  # without criteria (which only our caller writes): back to everybody
            continue
        known = KEYWORDS.get(keyword)
        if known is None or not arguments:
            continue
        value = _value(keyword, arguments)
        held = values.setdefault((match, keyword), [])
        if known.lists or not held:
            held.append(value)
    for keyword, known in KEYWORDS.items():
        value = " ".join(values.pop(("", keyword), [])) or known.default
        yield Setting(keyword, value, level(keyword, value), "")
    for (criteria, keyword), held in values.items():
        value = " ".join(held)
        yield Setting(keyword, value, level(keyword, value), criteria)


def level(keyword: str, value: str) -> int:
    """How strong `value` is for `keyword`: higher is stronger, -1 not known, 0 where there is no order."""
    known = KEYWORDS[keyword]
    if known.ranks:
        return next((rank for rank, group in enumerate(known.ranks) if value.lower() in group), -1)
    if known.lower:
        return max(0, 1000 - int(value)) if value.isascii() and value.isdigit() and len(value) < 6 else -1
    if known.algorithms:
        return int(not _weak(value))
    return 0


def _weak(value: str) -> bool:
    """Does the list allow an algorithm that is broken? With "-" in front, it takes algorithms away."""
    if value.startswith("-"):
        return False
    names = value.lower().lstrip("+^").split(",")
    return any(mark in name for name in names for mark in _WEAK if not name.startswith("rsa-sha2"))


def words(line: bytes) -> tuple[str, ...]:
    """Keyword in lower case and its arguments; () for an empty line, a comment, or one that sshd would refuse."""
    text = line.strip(b" \t\r\f\n").decode("utf-8", "surrogateescape")
    if not text or text.startswith("#"):
        return ()
    end = next((index for index, char in enumerate(text) if char in " \t="), len(text))
    keyword = text[:end].strip('"').lower()
    rest = text[end:].lstrip(" \t")
    arguments = _split(rest.removeprefix("="))  # one "=" may stand between keyword and value
    return (_ALIASES.get(keyword, keyword), *arguments) if arguments is not None else ()


def _split(text: str) -> list[str] | None:
    """argv_split() of OpenSSH: quotes of both kinds, backslash before quote and backslash, "#" ends the line."""
    out: list[str] = []
    index = 0
    while index < len(text) and len(out) < WORDS_MAX:
        if text[index] in " \t":
            index += 1
            continue
        if text[index] == "#":
            break
        word, quote = [], ""
        while index < len(text) and (quote or text[index] not in " \t"):
            char = text[index]
            following = text[index + 1 : index + 2]
            if char == "\\" and following and (following in "'\"\\" or (following == " " and not quote)):
                word.append(following)
                index += 1
            elif not quote and char in "'\"":
                quote = char
            elif quote and char == quote:
                quote = ""
            else:
                word.append(char)
            index += 1
        if quote:
            return None  # sshd refuses the whole file
        out.append("".join(word))
    return out


def _value(keyword: str, arguments: list[str]) -> str:
    known = KEYWORDS[keyword]
    value = " ".join(arguments)[:VALUE_MAX]
    if known.ranks:
        value = _SAME.get(value.lower(), value)
        value = value.lower() if keyword != "loglevel" else value.upper()
    return value
