"""The package's own tests (debian/tests), run on a booted device as autopkgtest runs them in a container."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.guard import Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

TESTS = Path(__file__).resolve().parents[2] / "packaging/debian/tests"
NAMES = re.findall(r"^Tests: (.+)$", (TESTS / "control").read_text(), re.MULTILINE)
LONGEST_S = 600


@pytest.mark.parametrize("name", NAMES)
def test_in_a_container(boot: Callable[..., Device], packages: dict[str, Path], name: str) -> None:
    device = boot()
    if device.run("dpkg -s python3-aiohttp").code:
        pytest.skip("this root has no python3-aiohttp")
    Guard(device).install(*packages.values())
    device.write(f"/root/tests/{name}", (TESTS / name).read_bytes(), 0o755)
    known = f"AUTOPKGTEST_TMP=/var/tmp EDGEGUARD_PACKAGE=/root/{packages['edgeguard'].name}"
    done = device.run(f"{known} /root/tests/{name}", timeout=LONGEST_S)
    assert done.code == 0, done.out[-3000:] + done.err[-3000:]


def test_alone_without_recommends(boot: Callable[..., Device], packages: dict[str, Path]) -> None:
    """Installed without Recommends, on a root that has no nftables, it runs and says what it lacks."""
    device = boot()
    device.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge nftables", timeout=120).ok()
    guard = Guard(device)
    guard.install(packages["edgeguard"])  # with --no-install-recommends
    assert device.run("dpkg -s nftables edgeguard-collector").code != 0
    guard.learned()
    assert device.run("systemctl is-active edgeguard.service").code == 0
    assert device.run("edgeguard-collector --help").code == 127
