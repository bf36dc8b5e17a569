"""debian/tests: what autopkgtest will find there, and that every script is one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[3] / "packaging/debian/tests"
FIELDS = {"Tests", "Depends", "Restrictions"}
# autopkgtest, README.package-tests
RESTRICTIONS = {"needs-root", "isolation-container", "breaks-testbed", "allow-stderr"}


def stanzas() -> list[dict[str, str]]:
    text = (TESTS / "control").read_text().strip()
    return [dict(re.findall(r"^([A-Za-z-]+): (.+)$", part, re.MULTILINE)) for part in text.split("\n\n")]


def test_every_stanza_names_a_script_and_every_script_has_a_stanza() -> None:
    names = [stanza["Tests"] for stanza in stanzas()]
    assert sorted(names) == sorted(path.name for path in TESTS.iterdir() if path.name != "control")
    for stanza in stanzas():
        assert stanza.keys() == FIELDS
        assert set(re.split(r",\s*", stanza["Restrictions"])) <= RESTRICTIONS
        assert "edgeguard" in re.split(r",\s*", stanza["Depends"])


def test_what_asks_systemd_says_that_it_needs_a_container() -> None:
    for stanza in stanzas():
        asks = re.search(r"^[^#\n]*\b(systemctl|journalctl)\b", (TESTS / stanza["Tests"]).read_text(), re.MULTILINE)
        assert bool(asks) == ("isolation-container" in stanza["Restrictions"]), stanza["Tests"]


@pytest.mark.parametrize("name", [stanza["Tests"] for stanza in stanzas()])
def test_a_script_is_shell_that_stops_at_errors(name: str) -> None:
    script = TESTS / name
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in script.read_text()
    subprocess.run(["/bin/sh", "-n", str(script)], check=True)
