"""Secrets in whole files are covered before two states of one are compared. Pure.

A text becomes lines that have two sides: what may be shown, and what is compared. So a secret that changes alone is a
changed line that shows neither value. What takes several lines (a key in PEM, a block of base64, a quoted password that
goes on) becomes one line, however long it was: not even its length is told.

As `redact`, whose patterns these are, this is a net and no proof: a secret that looks like any other word stays.
Anybody writes such files, so no pattern costs more than linear time, and lines beyond a bound are covered as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from edgeguard import redact
from edgeguard.redact import COVER

LINE_MAX = 2048  # characters; a longer line is data, not a setting, and is not shown
BLOCK_MAX = 512  # lines of one secret; a 16-kilobit RSA key has some 200
QUOTED_MAX = 64  # lines in which a quote that was opened must be closed, else it was none
BLOCK = f"{COVER} (a key or a block of data)"
MORE = f"{COVER} (more of it)"
LONG = f"{COVER} (a very long line)"
UNENDED = "(no newline at the end)"

# What stands behind the name of a secret and is none. All of a value's words must be here.
PLAIN = frozenset(
    (
        *("yes", "no", "true", "false", "on", "off", "none", "null", "default", "any", "optional", "required"),
        *("files", "systemd", "compat", "db", "nis", "nisplus", "ldap", "sss", "winbind", "dns", "include"),
        *("prohibit-password", "without-password", "forced-commands-only", "publickey", "hostbased"),
        *("md5", "sha512", "yescrypt", "scram-sha-256", "peer", "trust", "reject", "requisite", "sufficient"),
        *("keyboard-interactive", "substack"),
    )
)
_FIRST = r"[\s#;/*\"'\[{(<-]{0,16}(?:(?:export|setenv|set|declare|local|readonly|default)\s{1,8}(?:-\w\s{1,8})?)?"
_AT_START = re.compile(_FIRST + r"[\"']?\Z")
_KEY = re.compile(
    rf"(?i)(?:{redact.NAME}|(?<![\w.-])(?:(?:proxy-)?authorization|[\w-]{{0,16}}cookie|wep[-_]?key\d?|pin(?:code)?))"
    r"[\"'\]]{0,2}\s{0,8}(?:=>|[:?+]?=|:(?!:)|,(?=\s{0,8}[\"']))\s{0,8}"
)
_HINT = re.compile(rf"(?i){redact.WORD}|authorization|cookie|pin|wep")  # without one of these no line names a secret
_VALUE = re.compile(r"(?:\"(?:[^\"\\]|\\.)*+(?:\"|\\?\Z)|'[^']*+(?:'|\Z)|[^\s\"'])++")
_WORDS = re.compile(
    r"(?i)([\s#;]{0,16}(?:[a-z]{1,16}[-_.])?(?:password|passwd|passphrase|secret|psk|token|requirepass|masterauth"
    r"|masteruser|r[ow]community6?|com2sec|(?:root)?bindpw|rootpw|userpassword|auth_token|api_?key|createuser"
    r"|wireless[-_]key)\s{1,16})([^\s=:].*)"
)
_LOGIN = re.compile(
    r"(?i)(\b(?:login|user(?:name)?)\s{1,8}\S{1,256}\s{1,8}(?:\w{1,16}-)?(?:password|passwd|secret)\s{1,8})(\S+)"
)
_PROXIED = re.compile(r"(?i)(\bauthorization[\"']?\s{1,8}[\"']?(?:basic|bearer|digest|token)\s{1,8})([^\s\"']+)")
_PIPED = re.compile(  # echo SECRET | sudo -S
    r"(?i)(\b(?:echo|printf)\s{1,8})([^|]{1,512})"
    r"(?=\|\s{0,8}(?:sudo\s{1,8}(?:-S|\S{0,64}chpasswd)|\S{0,64}(?:passwd|cryptsetup|openssl|docker\s{1,8}login|su)\b))"
)
_TAG = re.compile(rf"(?i)(<[\w:.-]{{0,64}}{redact.WORD}[\w:.-]{{0,32}}(?:\s[^<>]{{0,256}})?>)([^<]*)(</|\Z)")
_URL = re.compile(r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{0,31}://[^/\s:@]{0,256}:)(\S{1,512})(?=@)")
_CRYPT = re.compile(r"\$[a-z0-9-]{1,16}\$[^\s:\"',;]{8,}|\{[A-Z][A-Z0-9.-]{2,20}\}[\w+/=$.,-]{8,}")
_SHADOW = re.compile(r"([^:\s]{1,256}:)([^:]*)((?::[^:]*){5}(?:(?::[^:]*){2})?)\Z")  # passwd has 7 fields, shadow 9
_NO_HASH = frozenset(("", "x", "*", "!", "!!", "!*", "*!"))
_RUN = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")
_HEX = re.compile(r"[0-9a-fA-F:]{32,}={0,2}")
_HANGING = re.compile(rf"(?i)--?[\w.-]{{0,64}}{redact.WORD}[\s=]{{0,8}}\\\Z")  # --password \, and the next line is it
_BEGIN = re.compile(r"-----? ?BEGIN [\w .-]{1,64}-----?")
_END = re.compile(r"-----? ?END [\w .-]{1,64}-----?")
_ARMOUR = re.compile(
    r"[\s#;>|*\"'+]*+(?:[A-Za-z0-9+/=_-]*+|(?:proc-type|dek-info|version|comment|hash|charset|messageid|subject|x-[\w-]+)"
    r"\s{0,8}:.*)(?:\\[nr]|[\s\"'\\,+])*+\Z",
    re.IGNORECASE,
)
DATA_MIN = 40  # characters of a line of base64; usual are 64 and 76
_ALL_DATA = re.compile(r"[\s#;>*\"']*([A-Za-z0-9+/_-]{40,}={0,2})[\s\"'\\,]*\Z")
_DATA_ON = re.compile(r"[\s#;>*\"']*[A-Za-z0-9+/_-]+={0,2}[\s\"'\\,]*\Z")
_OPENS = frozenset(("", "|", ">", "|-", ">-", "|+", ">+", "{", "[", "(", "\\"))


class Line(NamedTuple):
    """One line of a text, or several that are one secret. A few of thousands are shown, so they are covered then."""

    key: str  # what is compared; leaves no process
    before: str = ""  # what stands in the line before a block that is a secret as a whole
    instead: str = ""  # what is shown of such a block, or of what belongs to a secret that began above
    after: str = ""

    @property
    def shown(self) -> str:
        """Without secrets."""
        return (line(self.before) + self.instead if self.instead else line(self.key)) + self.after


def lines(text: str) -> list[Line]:
    """The lines of a whole text. A text whose end has no newline has another last line than one that has it."""
    raw = text.split("\n")
    ends = not raw[-1]
    if ends:
        raw.pop()
    found: list[Line] = []
    at = 0
    while at < len(raw):
        end = _block(raw, at)
        if end > at:
            found.append(Line("\n".join(raw[at:end]), _before_block(raw[at]), BLOCK))
            at = end
            continue
        found.append(Line(raw[at]))
        end = _secret_until(raw, at)
        at += 1
        if end > at:
            found.append(Line("\n".join(raw[at:end]), "", MORE))
            at = end
    if found and not ends:
        last = found[-1]
        before, instead = (last.before, last.instead) if last.instead else (last.key, " ")
        found[-1] = Line(last.key + "\n\n", before, instead, UNENDED if instead == " " else f" {UNENDED}")
    return found


def line(value: str) -> str:
    """One line without what looks like a secret."""
    if len(value) > LINE_MAX:
        return LONG
    value = _shadow(value)
    if any(program in value for program in redact.PROGRAMS):
        value = _commands(value)
    value = _URL.sub(rf"\1{COVER}", value)
    value = _assigned(value)
    value = _TAG.sub(rf"\1{COVER}\3", value)
    value = _WORDS.sub(_named, value) if (told := _WORDS.match(value)) and told.end() == len(value) else value
    for pattern in (_LOGIN, _PROXIED, _PIPED):
        value = pattern.sub(rf"\1{COVER}", value)
    value = redact.OPTION_INSIDE.sub(rf"\1{COVER}", value)
    value = redact.HEADER.sub(rf"\1{COVER}", value)
    value = redact.SHAPES.sub(COVER, value)
    value = _CRYPT.sub(COVER, value)
    value = _HEX.sub(_digits, value)
    return _RUN.sub(_random, value)


def value_of(name: str, value: str) -> str:
    """The value of a setting as it may be shown; what the setting is called may make a secret of it."""
    return line(f"{name}={value}")[len(name) + 1 :]


# -- within a line


def _shadow(value: str) -> str:
    fields = _SHADOW.match(value)
    if fields is None or fields[2] in _NO_HASH:
        return value
    return f"{fields[1]}{COVER}{fields[3]}"


def _commands(value: str) -> str:
    """Arguments of programs that `redact` knows; each command from the program's name on."""
    parts = re.split(r"(\s+)", value)
    words = parts[::2]
    for at, word in enumerate(words):
        name = word.rpartition("/")[2].lstrip("\"'`($=")
        if name in redact.PROGRAMS:
            words[at:] = [word, *redact.arguments((name, *words[at + 1 :]))[1:]]
            break  # what follows in a pipe is covered by the patterns
    parts[::2] = words
    return "".join(parts)


def _assigned(value: str) -> str:
    """name=secret, "name": "secret": to the end of the line where the name begins it, else to the value's own end."""
    out: list[str] = []
    done = 0
    for match in _KEY.finditer(value):
        if match.start() < done:
            continue
        start = match.end()
        end = _value_end(value, match.start(), start)
        if end <= start or _plain(value[start:end]) or _is_tag(value, match):
            continue
        out += [value[done:start], COVER]
        done = end
    return "".join([*out, value[done:]])


def _is_tag(value: str, key: re.Match[str]) -> bool:
    """NOPASSWD: of a sudo rule says that no password is asked for."""
    name = key[0].rstrip()
    return name == "NOPASSWD:" or (name == "PASSWD:" and "=" in value[: key.start()])


def _value_end(value: str, key: int, start: int) -> int:
    if _AT_START.match(value, 0, key):
        return len(value)
    if value[key - 1] in "\"'" and value[start : start + 1] not in ("'", '"') and '"' not in value[key:start]:
        closing = value.find(value[key - 1], start)  # "NAME=a secret with blanks": the quote is around both
        return closing if closing >= 0 else len(value)
    found = _VALUE.match(value, start)
    return found.end() if found else start


def _plain(value: str) -> bool:
    words = value.strip(" \t\r\"'`,;)]}").lower().split()
    return all(word.strip("\"',;") in PLAIN or (word.isdecimal() and len(word) <= 3) for word in words)


def _named(match: re.Match[str]) -> str:
    """password SECRET; but `password requisite pam_x.so` is a line of PAM."""
    first = match[2].split(None, 1)[0].lower()
    if first.startswith("[") or _plain(match[2]) or (first in PLAIN and ".so" in match[2]):
        return match[0]
    return match[1] + COVER


def _digits(match: re.Match[str]) -> str:
    """A long number in hexadecimal is a digest or a key; colons may stand between."""
    return COVER if len(match[0].replace(":", "")) >= 32 else match[0]


def _random(match: re.Match[str]) -> str:
    return COVER if _is_random(match[0]) else match[0]


def _is_random(run: str) -> bool:
    """Capitals, small letters and digits in turn, as base64 has them, and no path and no CamelCase."""
    kinds = ["a" if c.islower() else "A" if c.isupper() else "0" if c.isdigit() else "-" for c in run.rstrip("=")]
    if not {"a", "A"} <= set(kinds) or ("0" not in kinds and len(run) < 40):
        return False
    turns = sum(one != other for one, other in pairwise(kinds))
    return turns >= 0.33 * len(kinds)


# -- over several lines


def _before_block(first: str) -> str:
    """`cert = ` of a line that goes on with -----BEGIN."""
    found = _BEGIN.search(first)
    return first[: found.start() if found else _indent(first)]


def _block(raw: Sequence[str], at: int) -> int:
    """Where a block of key material that begins here ends; `at` if none does."""
    first = raw[at]
    if len(first) > LINE_MAX:
        return at
    if "BEGIN " in first and _BEGIN.search(first):
        end = at + 1
        if _END.search(first):
            return end
        while end < len(raw) and end - at < BLOCK_MAX and len(raw[end]) <= LINE_MAX:
            if _END.search(raw[end]):
                return end + 1
            if not _ARMOUR.match(raw[end]):
                break  # what does not look like a key is not hidden behind the first line of one
            end += 1
        return end
    data = _ALL_DATA.match(first) if len(first) >= DATA_MIN else None
    if data is None or not (_is_random(data[1]) or _HEX.fullmatch(data[1])):
        return at
    end = at + 1
    while end < len(raw) and end - at < BLOCK_MAX and len(raw[end]) <= LINE_MAX and _DATA_ON.match(raw[end]):
        end += 1
    return end


def _secret_until(raw: Sequence[str], at: int) -> int:
    """Where a secret that begins within this line ends; `at + 1` where it ends with it."""
    value = raw[at]
    after = at + 1
    if len(value) > LINE_MAX or after >= len(raw):
        return after
    if not _HINT.search(value):
        return after
    if _HANGING.search(value):
        return after + 1
    tag = _TAG.search(value) if "<" in value else None
    if tag is not None and tag[3] != "</":
        return _until(raw, after, "</")
    key = _KEY.search(value)
    if key is None or not _AT_START.match(value, 0, key.start()):
        return after
    rest = value[key.end() :].strip()
    if rest.endswith("\\"):
        while after < len(raw) and after - at < BLOCK_MAX and raw[after - 1].rstrip().endswith("\\"):
            after += 1
        return after
    for quote in ('"""', "'''", '"', "'"):
        if rest.startswith(quote):
            return after if quote in rest[len(quote) :] else _until(raw, after, quote)
    if value.lstrip().startswith(("#", ";")) or (_plain(rest) and rest not in _OPENS):
        return after
    return _indented(raw, after, _indent(value))


def _until(raw: Sequence[str], start: int, closing: str) -> int:
    for at in range(start, min(len(raw), start + QUOTED_MAX)):
        if closing in raw[at]:
            return at + 1
    return start


def _indent(value: str) -> int:
    return len(value) - len(value.lstrip(" \t"))


def _indented(raw: Sequence[str], start: int, indent: int) -> int:
    """Lines that are further in than this: a value that goes on, or all values below a name."""
    end = start
    for at in range(start, min(len(raw), start + BLOCK_MAX)):
        if not raw[at].strip():
            continue
        if _indent(raw[at]) <= indent:
            break
        end = at + 1
    return end
