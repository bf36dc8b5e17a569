"""`edgeguard policy ...`: is a policy right, what does it say of a path? Reads files, needs no daemon and no root."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from edgeguard.cli import importing
from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.cli.words import count, paint
from edgeguard.errors import PolicyError, PolicyProblem


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    lint = actions.add_parser("lint", help="check policy files", allow_abbrev=False)
    lint.add_argument(
        "directory",
        nargs="*",
        metavar="DIR",
        help="directories of *.toml, at most two: vendor, site (default: those of this device)",
    )
    lint.add_argument("--strict", action="store_true", help="a warning is an error")
    why = actions.add_parser("why", help="which line decides about a path", allow_abbrev=False)
    why.add_argument("path", nargs="+", metavar="PATH", help="a file, there or not")
    importing.arguments(actions)
    why.add_argument("--in", dest="directory", action="append", metavar="DIR", help="as for lint; may be given twice")


def run(given: argparse.Namespace, console: Console) -> int:
    return {"lint": _lint, "why": _why, "import-aide": importing.run}[given.action](given, console)


def _lint(given: argparse.Namespace, console: Console) -> int:
    from edgeguard.baseline.policy import parse  # offline verbs only: the daemon reads policies by itself
    from edgeguard.baseline.store import read_policy_dirs

    directories = _directories(given, console)
    files: list[tuple[str, bytes]] = []
    try:
        files = read_policy_dirs(directories[0], directories[1] if len(directories) == 2 else "")
        policy = parse(files, known_codes(), known_kinds(), now=console.now)
        problems = list(policy.warnings)
    except PolicyError as error:
        problems = error.problems
    errors = sum(1 for problem in problems if problem.level == "error")
    if console.form == "text":
        _show(console, problems, len(files), errors)
    elif console.form == "jsonl":
        for problem in problems:
            console.json(_document(problem))
    else:
        console.json({"v": 1, "files": len(files), "problems": [_document(problem) for problem in problems]})
    return 1 if errors or (problems and given.strict) else 0


def _directories(given: argparse.Namespace, console: Console) -> list[str]:
    from edgeguard.cli.main import UsageError

    paths = console.settings.paths
    directories = given.directory or [paths.vendor_policy, paths.site_policy]
    if len(directories) > 2:
        raise UsageError(f"policy {given.action}: at most two directories, vendor and site")
    return directories


# -- why


def _why(given: argparse.Namespace, console: Console) -> int:
    return tell_deciding(console, _directories(given, console), [os.path.abspath(path) for path in given.path])


def tell_deciding(console: Console, directories: Sequence[str], paths: Sequence[str]) -> int:
    """Which line of these directories decides about each path. 1 if one is not watched. Raises PolicyError."""
    from edgeguard.baseline.policy import parse
    from edgeguard.baseline.store import read_policy_dirs
    from edgeguard.cli.jsonform import watch_document
    from edgeguard.cli.pages import watched
    from edgeguard.sensors.deciding import decision
    from edgeguard.sensors.walk import resolved
    from edgeguard.sensors.watching import Plan

    files = read_policy_dirs(directories[0], directories[1] if len(directories) == 2 else "")
    if not files:
        console.remark(f"edgeguard: there is no policy file in {escape(' and '.join(directories))}")
    policy = parse(files)
    plan = Plan(resolved(policy.watches, "/"))
    answers: list[dict[str, Any]] = []
    for path in paths:
        parent, _, name = path.rpartition("/")
        real = f"{os.path.realpath(parent or '/').rstrip('/')}/{name}"
        answers.append({"v": 1, "subject": escape(real), "watch": watch_document(decision(plan, real))})
    console.answers(answers, lambda answer: f"{answer['subject']}  {watched(answer['watch'])}")
    return 0 if all(answer["watch"]["watched"] for answer in answers) else 1


# -- lint


def known_codes() -> dict[str, tuple[str, str]]:
    from edgeguard import codes

    return {name: (code.title, str(code.severity)) for name, code in codes.load().items()}


def known_kinds() -> dict[str, Any]:
    """What sensors declare: the columns that a rule may name."""
    from edgeguard.sensors import TABLE, sensor_class

    kinds: dict[str, Any] = {}
    for name in TABLE:
        kinds.update(sensor_class(name).kinds)
    return kinds


def _show(console: Console, problems: list[PolicyProblem], files: int, errors: int) -> None:
    for problem in problems:
        word = paint({"error": "FAIL"}.get(problem.level, "WARN"), console.color, text=problem.level)
        tail = f"; expected {escape(problem.expected)}" if problem.expected else ""
        place = f"{escape(problem.file)}:{problem.line}:{problem.column}"
        console.text(f"{place}: {word}: {escape(problem.message)}{tail}")
        if problem.source.strip():
            source = escape(problem.source.rstrip().replace("\t", " "))
            gutter = f"{problem.line:>5} | "
            console.text(f"{gutter}{source}\n{'|':>{len(gutter) - 1}} {' ' * max(0, problem.column - 1)}^")
    warnings = len(problems) - errors
    console.text(f"{count(files, 'file')}, {count(errors, 'error')}, {count(warnings, 'warning')}")


def _document(problem: PolicyProblem) -> dict[str, Any]:
    return {
        "v": 1,
        "file": escape(problem.file),
        "line": problem.line,
        "column": problem.column,
        "level": problem.level,
        "message": escape(problem.message),
        "expected": escape(problem.expected),
    }
