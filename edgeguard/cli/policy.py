"""`edgeguard policy lint`: is a policy right? Reads files, needs no daemon and no root."""

from __future__ import annotations

import argparse
from typing import Any

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


def run(given: argparse.Namespace, console: Console) -> int:
    from edgeguard.baseline.policy import parse  # offline verbs only: the daemon reads policies by itself
    from edgeguard.baseline.store import read_policy_dirs
    from edgeguard.cli.main import UsageError

    paths = console.settings.paths
    directories = given.directory or [paths.vendor_policy, paths.site_policy]
    if len(directories) > 2:
        raise UsageError("policy lint: at most two directories, vendor and site")
    files: list[tuple[str, bytes]] = []
    try:
        files = read_policy_dirs(directories[0], directories[1] if len(directories) == 2 else "")
        policy = parse(files, _codes(), _kinds(), now=console.now)
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


def _codes() -> dict[str, tuple[str, str]]:
    from edgeguard import codes

    return {name: (code.title, str(code.severity)) for name, code in codes.load().items()}


def _kinds() -> dict[str, Any]:
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
