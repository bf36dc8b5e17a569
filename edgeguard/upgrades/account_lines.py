"""What a package's scripts and its sysusers.d files say about accounts: which they make, with which shell, and which
they take away. Pure, and no shell: only what stands there in plain words is understood, the rest is not said.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from edgeguard.upgrades import postrm

ACCOUNTS_MAX = 200  # of one text
SYSUSERS_MAX = 1 << 18  # bytes of one sysusers.d file
# Where no shell is said: of adduser --system and sysusers.d, of adduser, of useradd (Debian's /etc/default/useradd).
NOLOGIN, DSHELL, SHELL = "/usr/sbin/nologin", "/bin/bash", "/bin/sh"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_COMMAND = re.compile(r"(?:/usr/s?bin/|/s?bin/)?(adduser|useradd|addgroup|groupadd|deluser|userdel|delgroup|groupdel)")
_MAKES = {"adduser": "user", "useradd": "user", "addgroup": "group", "groupadd": "group"}
_TAKES = {"deluser": "user", "userdel": "user", "delgroup": "group", "groupdel": "group"}
_SHELL = ("--shell", "-s")
_SYSTEM = ("--system", "-r")
# Options of these programs that are followed by their value.
_VALUED = frozenset(
    ("--home", "--home-dir", "--shell", "--gecos", "--comment", "--uid", "--gid", "--ingroup", "--groups", "--conf")
) | frozenset(
    ("--firstuid", "--lastuid", "--firstgid", "--lastgid", "--add_extra_groups", "--base-dir", "--skel", "--key")
) | frozenset(("--password", "--expiredate", "--inactive", "--root", "--prefix", "--backup-to"))  # fmt: skip
_VALUED_SHORT = frozenset(("-d", "-s", "-c", "-u", "-g", "-G", "-b", "-k", "-K", "-p", "-e", "-R", "-P"))
_INACTIVE = "-f"  # of useradd followed by days; the others mean by it that they are forced


def made(scripts: bytes) -> dict[str, str]:
    """Subject ("user NAME", "group NAME") -> shell, for what these scripts make by name (adduser, useradd, addgroup,
    groupadd). A user may come with a group of its name."""
    found: dict[str, str] = {}
    for command, names, shell in _calls(scripts):
        if command in _MAKES and len(names) == 1 and len(found) < ACCOUNTS_MAX:  # two names: into a group that is there
            if _MAKES[command] == "user":
                found[f"user {names[0]}"] = shell
            found.setdefault(f"group {names[0]}", "")
    return found


def taken(script: bytes) -> frozenset[str]:
    """Subjects that a script takes away by name (deluser, userdel, delgroup, groupdel). With a user goes the group of
    its name."""
    found: set[str] = set()
    for command, names, _ in _calls(script):
        if command in _TAKES and len(names) == 1 and len(found) < ACCOUNTS_MAX:
            found |= {f"group {names[0]}"} | ({f"user {names[0]}"} if _TAKES[command] == "user" else set())
    return frozenset(found)


def declared(text: bytes) -> dict[str, str]:
    """The same as `made`, of a sysusers.d file. {} for one that is too large."""
    found: dict[str, str] = {}
    if len(text) > SYSUSERS_MAX:
        return found
    for line in text.decode("utf-8", "replace").splitlines():
        try:
            fields = shlex.split(line, comments=True)
        except ValueError:
            continue
        if len(fields) < 2 or not _NAME.fullmatch(fields[1]) or len(found) >= ACCOUNTS_MAX:
            continue
        if fields[0] in ("u", "u!"):
            shell = fields[5] if len(fields) > 5 else "-"
            found[f"user {fields[1]}"] = shell if shell != "-" else NOLOGIN
        if fields[0] in ("u", "u!", "g"):
            found.setdefault(f"group {fields[1]}", "")
    return found


def _calls(scripts: bytes) -> Iterator[tuple[str, list[str], str]]:
    """(command, the names it is called with, shell) of each call that is understood."""
    for line in postrm.written(scripts):
        if not any(word in line for word in (b"user", b"group")):
            continue
        for words in _commands(line.decode("utf-8", "replace")):
            command = _COMMAND.fullmatch(words[0])
            if command is not None:
                names, options = _arguments(
                    words[1:], _VALUED_SHORT | {_INACTIVE} if command[1] == "useradd" else _VALUED_SHORT
                )
                if names and all(_NAME.fullmatch(name) for name in names):
                    yield command[1], names, _shell(command[1], options)


def _shell(command: str, options: dict[str, str]) -> str:
    said = [options[name] for name in _SHELL if name in options]
    if said:
        return said[0]
    if command == "useradd":
        return SHELL
    return NOLOGIN if any(name in options for name in _SYSTEM) else DSHELL


def _commands(line: str) -> Iterator[list[str]]:
    """The words of each simple command of a line; what stands before it (if, then, !, exec) left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quote that ends on another line
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word and set(word) <= set("();<>|&"):
            if command:
                yield command
            # What follows < or > is a file's name and no command.
            command = ["<"] if set(word) & set("<>") else []
        elif command or word not in _BEFORE:
            command.append(word)


_BEFORE = frozenset(("if", "then", "else", "elif", "do", "!", "exec", "command", "{"))


def _arguments(words: list[str], valued: frozenset[str]) -> tuple[list[str], dict[str, str]]:
    """The names, and the options with their values. `valued`: short options that are followed by their value."""
    names: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "2":  # of 2>/dev/null
            continue
        if word.startswith("--"):
            name, given, value = word.partition("=")
            options[name] = next(rest, "") if not given and name in _VALUED else value
        elif word.startswith("-"):  # -rms /bin/sh, -s/bin/sh
            for place, letter in enumerate(word[1:], 2):
                options[f"-{letter}"] = ""
                if f"-{letter}" in valued:
                    options[f"-{letter}"] = word[place:].removeprefix("=") or next(rest, "")
                    break
        else:
            names.append(word)
    return names, options
