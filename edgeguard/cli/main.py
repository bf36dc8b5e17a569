"""The command line: which verb, its options, and what an error means. One file a verb; the table is here.

`run` returns an exit code and prints; library code only returns or raises. The launcher answers a plain `status`
by itself without coming here (see packaging/bin/edgeguard).

Exit codes, the same everywhere: 0 fine, 1 attention, 2 critical, 3 unknown, 64 usage, 77 not permitted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError, DaemonSilent, EdgeGuardError, NotPermitted, PolicyError

OK, ATTENTION, CRITICAL, UNKNOWN, USAGE, DENIED = 0, 1, 2, 3, 64, 77

VERBS: Mapping[str, tuple[str, str]] = {
    "status": ("Look", "how is this device?  (also: plain `edgeguard`)"),
    "findings": ("Look", "what differs from the baseline, worst first"),
    "explain": ("Look", "what it means, who did it, how to fix it"),
    "why": ("Look", "what the policy says about one file, port or process"),
    "log": ("Look", "events as recorded; verify: is it whole? export: to a stick"),
    "accept": ("Act", "this change is right: expect it from now on"),
    "undo": ("Act", "take back an acceptance or a remediation"),
    "scan": ("Act", "check now; --root DIR: check an image"),
    "baseline": ("Act", "learn | show | diff | build | sign | verify | install | history"),
    "enroll": ("Act", "join a collector by a one-time token"),
    "identity": ("Act", "show | create: whose device this is, and where its key lies"),
    "reload": ("Act", "read policy and settings again"),
    "doctor": ("Help me", "is EdgeGuard itself healthy?"),
    "policy": ("Help me", "lint | why | import-aide: is a policy right, what does it say?"),
    "version": ("Help me", "which version runs here"),
    "help": ("Help me", "this page"),
}
"""Verb -> section of the help page and one line. Each has a module edgeguard.cli.NAME with `arguments` and `run`."""

_TAKES_VALUE = ("--settings", "--socket", "--color", "-o", "--output")


class VerbModule(Protocol):
    def arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, given: argparse.Namespace, console: Console) -> int: ...


class UsageError(EdgeGuardError):
    """What was typed is not a command: exit 64."""


class Parser(argparse.ArgumentParser):
    """argparse without guessing, and with an error that its caller handles."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nTry `{self.prog} --help`.")


def main(argv: Sequence[str]) -> int:
    """The program. Never raises; what goes wrong becomes a line on stderr and an exit code."""
    try:
        code = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `edgeguard log | head`: they have seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except KeyboardInterrupt:
        return 130
    return code


def _main(argv: Sequence[str]) -> int:
    try:
        verb, rest = split(argv)
        if verb in {"help", ""}:
            return _help(rest)
        module = _module(verb)
        given = parser_for(verb, module.arguments).parse_args(rest)
        return module.run(given, Console(given))
    except SystemExit as leaving:  # argparse after --help
        return int(leaving.code or 0)
    except UsageError as error:
        return _complain(error, USAGE)
    except NotPermitted as error:
        return _complain(error, DENIED)
    except PolicyError as error:
        return _complain(error, ATTENTION)
    except DaemonSilent as error:
        return _complain(
            f"the daemon does not answer: {error}\nThis device may not be watched. Try `edgeguard`.", UNKNOWN
        )
    except ControlError as error:
        return _complain(error, USAGE if error.name.endswith(("InvalidParameter", "Ambiguous")) else ATTENTION)
    except EdgeGuardError as error:
        return _complain(error, ATTENTION)
    except BrokenPipeError:
        raise
    except PermissionError as error:
        return _complain(f"{error.filename}: permission denied", DENIED)
    except OSError as error:
        return _complain(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), UNKNOWN)


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb and everything else: common options may stand before it."""
    rest = list(argv)
    at = 0
    while at < len(rest) and rest[at].startswith("-") and rest[at] != "--":
        if rest[at] in {"-h", "--help"} and at == len(rest) - 1:
            return "help", []
        if rest[at] == "--version":
            return "version", rest[:at] + rest[at + 1 :]
        at += 2 if rest[at] in _TAKES_VALUE else 1
    if at >= len(rest):
        return "status", rest
    return rest[at], rest[:at] + rest[at + 1 :]


def parser_for(verb: str, arguments: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """The options of one verb and the common ones, which may stand before and after an action (`baseline show`)."""
    parser = Parser(prog=f"edgeguard {verb}", description=VERBS[verb][1], allow_abbrev=False)
    arguments(parser)
    common(parser)
    for action in parser._actions:  # noqa: SLF001 - argparse keeps no other list
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            told = {choice.dest: choice.help for choice in action._choices_actions}  # noqa: SLF001
            for name, inner in action.choices.items():
                inner.description = told.get(name)  # its own --help says what it does, too
                common(inner, inner=True)
    return parser


def common(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """What every verb takes. `inner`: what is not given there was perhaps given before."""
    group = parser.add_argument_group("common options")

    def add(*names: str, default: object, **more: Any) -> None:
        group.add_argument(*names, default=argparse.SUPPRESS if inner else default, **more)

    add("-o", "--output", choices=("text", "json", "jsonl"), default="text", help="form of the answer")
    add("-q", "--quiet", action="store_true", default=False, help="say nothing; the exit code tells")
    add("--color", choices=("auto", "always", "never"), default="auto", help="colour (also: NO_COLOR)")
    add("--settings", metavar="FILE", default="", help="agent.toml of the daemon to talk to")
    add("--socket", metavar="PATH", default="", help="control socket of the daemon to talk to")


def _module(verb: str) -> VerbModule:
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise UsageError(f"no command `{escape(verb)}`{hint}\nTry `edgeguard help`.")
    module: VerbModule = import_module(f"edgeguard.cli.{verb}")
    return module


def _help(rest: Sequence[str]) -> int:
    topics = [word for word in rest if not word.startswith("-")]
    if topics:
        parser_for(topics[0], _module(topics[0]).arguments).print_help()
        return OK
    print(page())
    return OK


def page() -> str:
    """One screen of help."""
    lines = []
    section = ""
    for verb, (head, text) in VERBS.items():
        if head != section:
            note = " (root or group edgeguard-admin; every act is recorded)" if head == "Act" else ""
            lines.append(head + note)
            section = head
        lines.append(f"  {verb:<12} {text}")
    lines.append("Run `edgeguard COMMAND --help`, or `man edgeguard`.")
    return "\n".join(lines)


def _complain(error: object, code: int) -> int:
    for line in str(error).splitlines():
        print(f"edgeguard: {escape(line)}", file=sys.stderr)
    return code
