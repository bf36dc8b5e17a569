#!/usr/bin/python3
"""audit.py [--installed debian|pypi]: known holes in our dependencies, without a network (packaging/advisories.toml).

Without an option: what Debian 12 and 13 ship, and what pyproject.toml allows. `--installed debian` compares this
machine's packages (on Debian 12 or 13), `--installed pypi` what the interpreter that runs this imports (`make check`
runs it in the environment with the newest libraries). A hole without a fix needs a reason why it does not reach us.
Exit code 1 if there is anything that nobody has accepted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")
UNFIXED, CLEAN = "unfixed", "clean"
STALE_DAYS = 180  # after that the table says little about today


class Advisory(NamedTuple):
    package: str
    cves: tuple[str, ...]
    introduced: str
    fixed: str
    suites: Mapping[str, str]  # suite -> first version with the fix, UNFIXED or CLEAN
    accepted: str


class Table(NamedTuple):
    reviewed: date
    advisories: tuple[Advisory, ...]
    shipped: Mapping[str, Mapping[str, str]]  # suite -> library -> Debian version
    packages: Mapping[str, str]  # library -> Debian package


class Hole(NamedTuple):
    """One advisory that holds somewhere."""

    where: str
    version: str
    advisory: Advisory

    def __str__(self) -> str:
        names = ", ".join(self.advisory.cves)
        verdict = f"accepted: {self.advisory.accepted}" if self.advisory.accepted else "NOT ACCEPTED"
        return f"{self.where}: {self.advisory.package} {self.version}: {names}: {verdict}"


def load(path: Path = TOP / "packaging/advisories.toml") -> Table:
    document = tomllib.loads(path.read_text())
    found = [
        Advisory(
            entry["package"],
            tuple(entry["cves"]),
            entry["introduced"],
            entry["fixed"],
            {suite: entry[suite] for suite in SUITES},
            entry.get("accepted", ""),
        )
        for entry in document["advisory"]
    ]
    return Table(document["reviewed"], tuple(found), document["debian"], document["packages"])


def older(one: str, other: str) -> bool:
    """By Debian's rules, which agree with Python's for plain numbers; ~ and +deb12u1 are understood."""
    return subprocess.run(["/usr/bin/dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0


def upstream(version: str) -> str:
    """The library's own number in a Debian version."""
    return re.sub(r"^\d+:", "", version).rpartition("-")[0] or version


def has_hole(advisory: Advisory, version: str) -> bool:
    """Is this release of the library itself in the range?"""
    return older(version, advisory.fixed) and not (advisory.introduced and older(version, advisory.introduced))


def holes_in_debian(table: Table, suite: str, versions: Mapping[str, str], where: str) -> Iterator[Hole]:
    """By the whole Debian version: a release that never had the hole is "clean", an older package than the fix is not.

    A package from elsewhere (a backport) with a new enough number of the library itself is fine, too.
    """
    for advisory in table.advisories:
        version = versions.get(advisory.package, "")
        fix = advisory.suites[suite]
        if (
            version
            and has_hole(advisory, upstream(version))
            and fix != CLEAN
            and (fix == UNFIXED or older(version, fix))
        ):
            yield Hole(where, version, advisory)


def holes_upstream(table: Table, versions: Mapping[str, str], where: str) -> Iterator[Hole]:
    for advisory in table.advisories:
        version = versions.get(advisory.package, "")
        if version and has_hole(advisory, version):
            yield Hole(where, version, advisory)


def declared() -> dict[str, str]:
    """Library -> oldest version that pyproject.toml allows."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["collector"]]
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", item) for item in wanted)
    return {match[1]: match[2] for match in found if match}


def admitted(table: Table) -> Iterator[str]:
    """What the declared ranges let in beside Debian's packages; said, not judged: Debian's old versions need them."""
    for library, oldest in declared().items():
        names = [
            cve
            for advisory in table.advisories
            if advisory.package == library and has_hole(advisory, oldest)
            for cve in advisory.cves
        ]
        if names:
            newest = max((a.fixed for a in table.advisories if a.package == library), key=_numbers)
            yield f"{library}>={oldest} also allows releases with {len(names)} known holes; from {newest} on none"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def incomplete(table: Table) -> Iterator[str]:
    """What the table itself lacks."""
    for library in declared():
        if library not in table.packages or any(library not in table.shipped[suite] for suite in SUITES):
            yield f"advisories.toml: {library} is a dependency, but no Debian version is given"
    for advisory in table.advisories:
        if UNFIXED in advisory.suites.values() and not advisory.accepted:
            yield f"advisories.toml: {', '.join(advisory.cves)} is unfixed in Debian, and nobody has accepted it"


def installed_debian(table: Table) -> dict[str, str]:
    found = {}
    for library, package in table.packages.items():
        command = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${source:Version} ${Version}", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        state, _, versions = done.stdout.partition(" ")
        if state == "installed":
            found[library] = re.sub(r"\+b\d+$", "", versions.split()[-1])  # a rebuild holds the same source
    return found


def installed_python(table: Table) -> dict[str, str]:
    found = {}
    for library in table.packages:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def suite_here() -> str:
    """This machine's Debian release, "" if it is none that we know."""
    text = Path("/etc/os-release").read_text(errors="replace") if Path("/etc/os-release").exists() else ""
    match = re.search(r"^VERSION_CODENAME=(\w+)$", text, re.MULTILINE)
    return match[1] if match and match[1] in SUITES else ""


def holes_here(table: Table, how: str) -> Iterator[Hole]:
    """In what is installed on this machine."""
    if how == "pypi":
        yield from holes_upstream(
            table, installed_python(table), f"Python {sys.version_info[0]}.{sys.version_info[1]} here"
        )
    elif suite := suite_here():
        yield from holes_in_debian(table, suite, installed_debian(table), f"{suite}, installed here")
    else:
        print("this is neither Debian 12 nor 13: what is installed is not compared")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--installed", choices=["debian", "pypi"], help="compare what is installed here, not what is declared"
    )
    given = parser.parse_args(arguments)
    table = load()
    problems = list(incomplete(table))
    if given.installed:
        holes = list(holes_here(table, given.installed))
    else:
        holes = [
            hole for suite in SUITES for hole in holes_in_debian(table, suite, table.shipped[suite], f"Debian {suite}")
        ]
        print("\n".join(admitted(table)))
    problems += [str(hole) for hole in holes if not hole.advisory.accepted or given.installed == "pypi"]
    print("\n".join(str(hole) for hole in holes if str(hole) not in problems))
    age = (date.today() - table.reviewed).days  # noqa: DTZ011 - a day more or less does not matter
    if age > STALE_DAYS:
        print(f"warning: advisories.toml was reviewed {age} days ago")
    print(
        "\n".join(problems)
        or f"no hole that nobody has accepted ({len(table.advisories)} advisories of {table.reviewed})"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
