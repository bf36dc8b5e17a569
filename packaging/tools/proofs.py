#!/usr/bin/python3
"""Writes docs/proofs.md: what is proven where, read from the tests' folders, marks and first sentences (as AST).

    python3 packaging/tools/proofs.py            write it
    python3 packaging/tools/proofs.py --check    exit code 1 when it is not current

A folder of tests is a level. A level or a mark that this file does not know is listed all the same, with what its
conftest or pyproject.toml says about it; nothing is left out silently.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[2]
PAGE = "docs/proofs.md"
# Where to begin reading; other folders follow by name. Heading and how to run it.
LEVELS = {
    "unit": ("Anywhere, without root and network", "make test"),
    "fuzz": ("Any bytes, guided by coverage", "make fuzz"),
    "root": ("This kernel, in namespaces and mounts of their own", "make test-root"),
    "device": ("Booted Debian devices", "make test-device"),
    "bench": ("Figures, each with its reference", "make bench"),
}
NOT_LEVELS = {"corpus", "vectors"}
PATTERNS = ("test_*.py", "bench_*.py")
OF_PYTEST = {"parametrize", "skipif", "skip", "xfail", "usefixtures", "filterwarnings"}

HEAD = """# What is proven where

One line a file of tests: what it is about, in its own first sentence. Made by `packaging/tools/proofs.py` from the
tests themselves; a test checks that this page is current. How to run each level, and what it cannot show, is in
[testing.md](testing.md).
"""


class Proof(NamedTuple):
    """One file of tests."""

    level: str
    area: str  # the folder below the level, "" if there is none
    name: str
    sentence: str
    marks: tuple[str, ...]


def proofs(top: Path) -> list[Proof]:
    """All test files of all levels, in order."""
    found = []
    for path in sorted({path for pattern in PATTERNS for path in (top / "tests").rglob(pattern)}):
        parts = path.relative_to(top / "tests").parts
        if len(parts) > 1 and parts[0] not in NOT_LEVELS:
            tree = ast.parse(path.read_bytes())
            found.append(Proof(parts[0], "/".join(parts[1:-1]), path.name, sentence(tree), tuple(sorted(marks(tree)))))
    return found + harnesses(top)


def harnesses(top: Path) -> list[Proof]:
    """The fuzzer's table is a list of proofs, too: `Harness("name", ...)`."""
    table = top / "tests/fuzz/table.py"
    if not table.exists():
        return []
    calls = [node for node in ast.walk(ast.parse(table.read_bytes())) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func) == "Harness"]
    return [
        Proof("fuzz", "", str(ast.literal_eval(call.args[0])), f"`{ast.unparse(call.args[1])}`", ()) for call in named
    ]


def sentence(tree: ast.Module) -> str:
    """The first sentence of the docstring."""
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text)[0]


def marks(tree: ast.Module) -> Iterator[str]:
    """Names of all marks in a file (`@pytest.mark.root`, `pytestmark = ...`), but those of pytest itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark" and node.attr not in OF_PYTEST:
            yield node.attr


def known_marks(top: Path) -> dict[str, str]:
    """Mark -> what pyproject.toml says it needs."""
    options = tomllib.loads((top / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    pairs = (line.partition(":") for line in options.get("markers", ()))
    return {name.partition("(")[0].strip(): text.strip() for name, _, text in pairs}


def about(top: Path, level: str) -> str:
    """What a level's conftest (or package) says of itself."""
    for name in ("conftest.py", "__init__.py", "table.py", "run.py"):
        path = top / "tests" / level / name
        if path.exists() and (said := sentence(ast.parse(path.read_bytes()))):
            return said
    return ""


def page(top: Path) -> str:
    found = proofs(top)
    levels = sorted({proof.level for proof in found}, key=lambda level: ([*LEVELS, level].index(level), level))
    described = known_marks(top)
    lines = [HEAD]
    used = sorted({mark for proof in found for mark in proof.marks})
    if used:
        lines += ["| mark | needs |", "|---|---|"]
        lines += [f"| `{mark}` | {cell(described.get(mark, ''))} |" for mark in used] + [""]
    for level in levels:
        heading, command = LEVELS.get(level, (f"tests/{level}", ""))
        lines += [
            f"## {heading}",
            "",
            *(
                [f"`{command}`, `tests/{level}`. {about(top, level)}".rstrip(), ""]
                if command
                else [about(top, level), ""]
                if about(top, level)
                else []
            ),
        ]
        lines += ["| about | proven | in | marks |", "|---|---|---|---|"]
        lines += [row(proof) for proof in found if proof.level == level] + [""]
    return "\n".join(lines).rstrip() + "\n"


def row(proof: Proof) -> str:
    marks_ = ", ".join(f"`{mark}`" for mark in proof.marks if mark != proof.level)
    return f"| {cell(proof.area)} | {cell(proof.sentence)} | {cell(proof.name)} | {marks_} |"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    made, there = page(TOP), TOP / PAGE
    if arguments == ["--check"]:
        current = there.exists() and there.read_text() == made
        print(f"{PAGE} is current" if current else f"{PAGE} is not current: python3 packaging/tools/proofs.py")
        return 0 if current else 1
    there.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
