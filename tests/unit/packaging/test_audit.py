"""The audit of dependencies: Debian's versions count as whole strings, and nothing unfixed passes without a reason."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "packaging/tools"))
import audit  # noqa: E402 - a tool that is no package

FIXED = audit.Advisory(
    "lib", ("CVE-1",), "2.0", "4.0", {"bookworm": "3.1-2+deb12u3", "trixie": audit.UNFIXED}, accepted=""
)
TABLE = audit.Table(date(2026, 1, 1), (FIXED,), {"bookworm": {}, "trixie": {}}, {"lib": "python3-lib"})


@pytest.mark.parametrize(
    ("suite", "version", "holds"),
    [
        ("bookworm", "3.1-2", True),
        ("bookworm", "3.1-2+deb12u2", True),
        ("bookworm", "3.1-2+deb12u3", False),  # the same release of the library, with Debian's fix
        ("bookworm", "3.1-2+deb12u10", False),
        ("bookworm", "1.9-1", False),  # before the hole was made
        ("bookworm", "4.0-1~bpo12+1", False),  # a backport of the fixed release
        ("trixie", "3.9-1", True),
        ("trixie", "1:4.0-1", False),
    ],
)
def test_debian_versions_count_whole(suite: str, version: str, holds: bool) -> None:
    assert bool(list(audit.holes_in_debian(TABLE, suite, {"lib": version}, suite))) is holds


@pytest.mark.parametrize(("version", "holds"), [("1.9", False), ("2.0", True), ("3.10", True), ("4.0", False)])
def test_upstream_versions_count_by_number(version: str, holds: bool) -> None:
    assert bool(list(audit.holes_upstream(TABLE, {"lib": version}, "here"))) is holds


def test_what_is_unfixed_needs_a_reason() -> None:
    assert any("CVE-1" in line for line in audit.incomplete(TABLE))
    accepted = TABLE._replace(advisories=(FIXED._replace(accepted="not reached"),))
    assert not any("CVE-1" in line for line in audit.incomplete(accepted))
    assert any("lib is" in line or "cbor2" in line for line in audit.incomplete(accepted)), "no Debian versions given"


def test_the_table_is_whole_and_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    table = audit.load()
    assert list(audit.incomplete(table)) == []
    assert audit.main([]) == 0
    assert "no hole that nobody has accepted" in capsys.readouterr().out
    assert audit.declared().keys() == table.packages.keys()
    cves = [cve for advisory in table.advisories for cve in advisory.cves]
    assert len(set(cves)) == len(cves)
    assert all(re.fullmatch(r"CVE-\d{4}-\d{4,}", cve) for cve in cves)


def test_a_new_hole_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = audit.load()
    fresh = audit.Advisory(
        "cbor2", ("CVE-2099-0001",), "", "9.0", {"bookworm": "5.4.6-1+deb12u1", "trixie": audit.CLEAN}, accepted=""
    )
    monkeypatch.setattr(audit, "load", lambda: table._replace(advisories=(*table.advisories, fresh)))
    assert audit.main([]) == 1
    assert "bookworm: cbor2 5.4.6-1: CVE-2099-0001: NOT ACCEPTED" in capsys.readouterr().out


def test_cbor2_decodes_nothing() -> None:
    """Why its decoder's holes are accepted: only `dumps` is taken from it."""
    taken = set()
    for path in (TOP / "edgeguard").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == "cbor2":
                taken |= {alias.name for alias in node.names}
            assert not (isinstance(node, ast.Import) and any(alias.name.startswith("cbor2") for alias in node.names))
    assert taken == {"dumps"}


def test_security_rules_cover_the_product() -> None:
    """ruff's S rules (those of bandit) hold in edgeguard/ but for two, and each single exemption says why."""
    lint = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert {rule for rule in lint["ignore"] if re.fullmatch(r"S\d*", rule)} == {"S101", "S603"}
    for pattern, rules in lint["per-file-ignores"].items():
        assert pattern.startswith("tests/") or not any(re.fullmatch(r"S\d*", rule) for rule in rules), pattern
    silent = [
        f"{path.relative_to(TOP)}:{number}: {line.strip()}"
        for folder in ("edgeguard", "packaging")
        for path in sorted((TOP / folder).rglob("*"))
        if path.is_file() and (path.suffix == ".py" or path.parent.name == "bin")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unexplained(line)
    ]
    assert silent == []


def unexplained(line: str) -> bool:
    """A security rule switched off without a word, or all rules at once."""
    found = re.search(r"# noqa(?P<codes>: *[A-Z]+\d+(?:, *[A-Z]+\d+)*)?(?P<reason> +- +\S.*)?", line)
    if found is None:
        return False
    codes = found["codes"] or ""
    return not codes or (bool(re.search(r"\bS\d", codes)) and not found["reason"])


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("x = 1", False),
        ("x()  # noqa: S105", True),
        ("x()  # noqa", True),
        ("x()  # noqa: S105 - a state, not a password", False),
        ("x()  # noqa: T201, S105", True),
        ("x()  # noqa: SLF001", False),
    ],
)
def test_an_exemption_without_a_reason_is_noticed(line: str, wrong: bool) -> None:
    assert unexplained(line) is wrong
