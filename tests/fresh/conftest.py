"""Fresh roots need root, mmdebstrap and a package mirror; elsewhere these tests skip and say why."""

from __future__ import annotations

import os
import shutil

import pytest

SUITES = ("bookworm", "trixie")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", default=" ".join(SUITES), help="Debian releases to try")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", metafunc.config.getoption("--suite").split())


@pytest.fixture(autouse=True)
def _able() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    for tool in ("mmdebstrap", "unshare", "tar", "git"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
