"""aide.conf (AIDE 0.17 to 0.19), read: macros, groups and rules; what is not ours is said, line by line. Pure.

Files come through `load` and nothing is executed: what @@x_include would run is refused. All that a file can make grow
has a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from edgeguard.baseline.aide_text import LINE_MAX, decoded, lines, split, version

FILE_MAX = 1 << 20  # bytes of one file; Debian's largest has 20 KB
TOTAL_MAX = 4 << 20  # bytes of all files
FILES_MAX = 400  # Debian has 260
INCLUDES_MAX = 16  # files within files, as AIDE has it
IFS_MAX = 32  # conditions within conditions
RULES_MAX = 20_000
MACROS_MAX = 5000

HASHES = (
    *("md5", "sha1", "sha256", "sha512", "rmd160", "tiger", "haval", "crc32", "crc32b", "gost", "whirlpool"),
    *("stribog256", "stribog512", "sha512_256", "sha3_256", "sha3_512", "H"),
)
_OURS: Mapping[str, str] = {
    **dict.fromkeys(HASHES, "sha256"),
    **dict.fromkeys(("p", "perm"), "mode"),
    **dict.fromkeys(("u", "user"), "uid"),
    **dict.fromkeys(("g", "group"), "gid"),
    **dict.fromkeys(("l", "linkname"), "target"),
    **dict.fromkeys(("acl", "xattrs", "selinux", "e2fsattrs"), "xattrs"),
    **dict.fromkeys(("s", "size"), "sha256"),
    **dict.fromkeys(("S", "growing"), "growth"),
    "ftype": "type",
    "caps": "caps",
}
_NONE = {
    *("i", "inode", "n", "linkcount", "b", "bcount", "m", "mtime", "a", "atime", "c", "ctime"),
    *("I", "ANF", "ARF", "compressed", "fstype"),
}
"""What changes without the file being another one, or says how AIDE reports: not carried."""

VERSION = "0.19"
"""Which AIDE this file is taken to be for: where it asks, the newest that is known here."""

_BUILTIN: Mapping[str, str] = {
    "E": "",
    "X": "acl+xattrs+selinux+e2fsattrs+caps",
    "L": "p+ftype+l+u+g+X",
    "R": "L+s+H",
    ">": "L+growing",
}
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_OPTION = re.compile(r"(?:database|report|gzip|log_level|verbose|root_prefix|config|acl_no|warn|num_workers|grouped|"
                     r"summarize|ignore_list|syslog|limit)[a-z0-9_]*\Z")  # fmt: skip
_VARIABLE = re.compile(r"@@\{([A-Za-z0-9_]+)\}")
_NAME_FILTER = re.compile(r"\^\[[A-Za-z0-9_.-]+\][+*]\$")
_TYPES = re.compile(r"(?:[fdlpbcsDP0](?:,[fdlpbcsDP])*)?(?:=[A-Za-z0-9_-]+)?\Z")  # 0.19: and of a file system's type


class Said(NamedTuple):
    """One line that was not carried, or not as it is."""

    file: str
    line: int
    message: str
    lost: bool = True  # False: a remark; nothing is watched less


class AideRule(NamedTuple):
    """One selection line."""

    sign: str  # "+", "!", "=", "-"
    expression: str
    types: str
    group: str
    checks: tuple[str, ...]
    file: str
    line: int


class Files(Protocol):
    """The files of the machine whose aide.conf this is."""

    def text(self, path: str) -> bytes:
        """At most FILE_MAX + 1 bytes. Raises OSError."""

    def names(self, directory: str) -> Sequence[str]:
        """Sorted. Raises OSError."""

    def executable(self, path: str) -> bool: ...

    def exists(self, path: str) -> bool: ...


class AideConf:
    """Reads one after the other. `rules` and `said` are what comes of it."""

    def __init__(self, files: Files, hostname: str) -> None:
        self._files = files
        self._hostname = hostname
        self.rules: list[AideRule] = []
        self.said: list[Said] = []
        self._macros: dict[str, str] = {"AIDE_VERSION": VERSION, "HOSTNAME": hostname}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._size = self._count = 0
        self._once: set[str] = set()
        self._ifs: list[bool] = []
        self._prefix = ""  # of all rules of an included directory
        for name, text in _BUILTIN.items():
            self._groups[name] = self._expression(text, "", 0)

    def read(self, path: str, depth: int = 0) -> None:
        """One file with all that it includes."""
        self._count += 1
        if depth > INCLUDES_MAX or self._count > FILES_MAX:
            self._say(path, 0, "too many files: it is not read")
            return
        try:
            data = self._files.text(path)
        except OSError as error:
            self._say(path, 0, f"it cannot be read: {error.strerror}")
            return
        self._size += len(data)
        if len(data) > FILE_MAX or self._size > TOTAL_MAX:
            self._say(path, 0, f"too large: at most {FILE_MAX} bytes, and {TOTAL_MAX} of all files, are read")
            return
        before = len(self._ifs)
        for number, line in lines(data.decode("utf-8", "surrogateescape")):
            self._line(path, number, line, depth)
        if len(self._ifs) != before:
            self._say(path, 0, "@@endif is missing")
            del self._ifs[before:]

    def _say(self, file: str, line: int, message: str, *, lost: bool = True, once: str = "") -> None:
        if once and once in self._once:
            return
        self._once.add(once)
        if len(self.said) < RULES_MAX:
            self.said.append(Said(file, line, message, lost))

    def _line(self, file: str, number: int, line: str, depth: int) -> None:
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            return
        if line.startswith("@@") and not line.startswith("@@{"):
            word, _, rest = line[2:].partition(" ")
            self._directive(file, number, word, rest.strip(), depth)
            return
        if not all(self._ifs):
            return
        written = self._substituted(file, number, line)
        if written is None:
            return
        found = _ASSIGNMENT.fullmatch(written)
        if found is not None and written[0] not in "/!=-":
            self._assign(file, number, found[1], found[2].strip())
        else:
            self._rule(file, number, written)

    def _substituted(self, file: str, number: int, line: str) -> str | None:
        missing = [name for name in _VARIABLE.findall(line) if name not in self._macros]
        if missing:
            self._say(file, number, f"@@{{{missing[0]}}} is not defined: the line is not carried")
            return None
        for _round in range(8):
            if not _VARIABLE.search(line):
                return line
            line = _VARIABLE.sub(lambda found: self._macros.get(found[1], ""), line)[: LINE_MAX + 1]
            if len(line) > LINE_MAX:
                break
        self._say(file, number, f"longer than {LINE_MAX} characters, or macros within macros: the line is not carried")
        return None

    # -- directives

    def _directive(self, file: str, number: int, word: str, rest: str, depth: int) -> None:
        if word in ("if", "ifdef", "ifndef", "ifhost", "ifnhost"):
            if len(self._ifs) >= IFS_MAX:
                self._say(file, number, f"more than {IFS_MAX} conditions within each other: taken as not true")
            self._ifs.append(all(self._ifs) and len(self._ifs) < IFS_MAX and self._holds(file, number, word, rest))
        elif word == "else" and self._ifs:
            self._ifs[-1] = not self._ifs[-1] and all(self._ifs[:-1])
        elif word == "endif" and self._ifs:
            self._ifs.pop()
        elif word in ("else", "endif"):
            self._say(file, number, f"@@{word} without a condition")
        elif all(self._ifs):
            self._do(file, number, word, rest, depth)

    def _holds(self, file: str, number: int, word: str, rest: str) -> bool:
        if word == "if":
            negated = rest.startswith("not ")
            versions = (self._substituted(file, number, rest.removeprefix("not ")) or "").split()
            if len(versions) == 3 and versions[1] == "version_ge":
                return (version(versions[0]) >= version(versions[2])) != negated
            word, _, rest = rest.removeprefix("not ").strip().replace("(", " ").replace(")", "").partition(" ")
            rest = rest.strip()
            if word not in ("defined", "hostname", "exists"):
                self._say(file, number, f"the condition {word} is not known: taken as not true")
                return False
            return self._asked(word, rest) != negated
        return self._asked("defined" if "def" in word else "hostname", rest) != word.startswith("ifn")

    def _asked(self, word: str, what: str) -> bool:
        if word == "defined":
            return what in self._macros
        return what == self._hostname if word == "hostname" else self._files.exists(what)

    def _do(self, file: str, number: int, word: str, rest: str, depth: int) -> None:
        if word == "define":
            name, _, value = rest.partition(" ")
            written = self._substituted(file, number, value.strip())
            if written is not None and (len(self._macros) < MACROS_MAX or name in self._macros):
                self._macros[name] = written
        elif word == "undef":
            self._macros.pop(rest, None)
        elif word in ("include", "x_include"):
            self._include(file, number, word, rest, depth)
        elif word == "x_include_setenv":
            self._say(file, number, "a setting for programs, which are not run", lost=False)
        else:
            self._say(file, number, f"@@{word} is not known")

    def _include(self, file: str, number: int, word: str, rest: str, depth: int) -> None:
        written = self._substituted(file, number, rest)
        words = (written or "").split()
        if not words:
            return
        if len(words) == 1:
            paths = words
        elif len(words) in (2, 3) and _NAME_FILTER.fullmatch(words[1]):
            try:
                wanted = re.compile(words[1])  # one class, repeated: it takes no time
            except re.error as error:  # a range that runs backwards
                self._say(file, number, f"{words[1]} is no filter of names ({error}): nothing is included")
                return
            try:
                names = [name for name in self._files.names(words[0]) if wanted.fullmatch(name)]
            except OSError as error:
                self._say(file, number, f"{words[0]} cannot be read: {error.strerror}")
                return
            paths = [f"{words[0].rstrip('/')}/{name}" for name in names]
        else:
            self._say(file, number, "only ^[...]+$ is understood as a filter of names: nothing is included")
            return
        before = self._prefix
        self._prefix += "".join(words[2:])
        for path in paths:
            if word == "x_include" and self._files.executable(path):
                self._say(file, number, f"{path} is a program, which is not run: what it would print is not carried")
            else:
                self.read(path, depth + 1)
        self._prefix = before

    # -- groups and rules

    def _assign(self, file: str, number: int, name: str, value: str) -> None:
        if name == "database_attrs" or _OPTION.match(name):
            self._say(file, number, f"{name}: a setting of AIDE itself", lost=False, once=f"option {name}")
            return
        if len(self._groups) < MACROS_MAX or name in self._groups:
            self._groups[name] = self._expression(value, file, number)

    def _expression(self, text: str, file: str, number: int) -> tuple[str, ...]:
        """A+B-C as attributes of AIDE."""
        found: dict[str, None] = {}
        sign = "+"
        for part in re.split(r"([+-])", text.replace(" ", "")):
            if part in ("+", "-"):
                sign = part
            elif part:
                known = self._groups.get(part)
                if known is None and part not in _OURS and part not in _NONE:
                    self._say(file, number, f"the attribute or group {part} is not known: nothing of it is checked")
                for item in known if known is not None else (part,):
                    if sign == "+":
                        found[item] = None
                    else:
                        found.pop(item, None)
        return tuple(found)

    def _rule(self, file: str, number: int, line: str) -> None:
        sign = line[0] if line[0] in "!=-" else "+"
        words = split(line.removeprefix(sign).lstrip())
        if not words or not words[0].startswith(("/", "^/")):
            self._say(file, number, "not a line of aide.conf that is known")
            return
        types = words[1] if len(words) > 1 and _TYPES.match(words[1]) and (len(words) > 2 or sign in "!-") else ""
        group = " ".join(words[2:] if types else words[1:])
        if sign in "+=" and not group:
            self._say(file, number, "a rule without a group")
            return
        if len(self.rules) >= RULES_MAX:
            self._say(file, number, f"more than {RULES_MAX} rules: the rest is not carried", once="rules")
            return
        attributes = self._expression(group, file, number) if sign in "+=" else ()
        expression = self._prefix + decoded(words[0]).removeprefix("^")
        self.rules.append(AideRule(sign, expression, types, group, checks_of(attributes), file, number))


def checks_of(attributes: Iterable[str]) -> tuple[str, ...]:
    """What of ours that is. What may grow has no fixed content."""
    found = {_OURS[item] for item in attributes if item in _OURS}
    if "growth" in found:
        found.discard("sha256")
    return tuple(sorted(found))
