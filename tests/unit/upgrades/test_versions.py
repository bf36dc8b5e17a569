"""Debian versions in their order."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgeguard.upgrades.versions import compare

PAIRS = (
    ("1.0", "1.0", 0),
    ("1.0-1", "1.0-2", -1),
    ("1.0~rc1", "1.0", -1),
    ("1.0~~", "1.0~", -1),
    ("1:0.1", "9.9", 1),
    ("3.0.17-1~deb12u2", "3.0.17-1~deb12u10", -1),
    ("1.0a", "1.0+b", -1),
    ("1.10", "1.9", 1),
    ("1.0-1", "1.0", 1),
    ("2.0.0-0", "2.0.0", 0),
    ("0:1", "1", 0),
    ("1.2.3", "1.2.3.1", -1),
    ("1.0+b1", "1.0", 1),
    ("1.0-1+deb12u1", "1.0-1", 1),
    ("6.1.0-13", "6.1.0-9", 1),
)


@pytest.mark.parametrize(("one", "two", "order"), PAIRS)
def test_the_later_version(one: str, two: str, order: int) -> None:
    assert compare(one, two) == order
    assert compare(two, one) == -order
    assert compare(one, one) == 0


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
@pytest.mark.parametrize(("one", "two", "order"), PAIRS)
def test_dpkg_says_the_same(one: str, two: str, order: int) -> None:
    relation = {-1: "lt", 0: "eq", 1: "gt"}[order]
    assert subprocess.run(["dpkg", "--compare-versions", one, relation, two], check=False).returncode == 0


def test_odd_texts_have_an_order_too() -> None:
    assert compare("", "") == 0
    assert compare("x" * 1000, "9" * 1000) != 0
