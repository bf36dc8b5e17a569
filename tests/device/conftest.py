"""Devices for the journeys. A machine that cannot boot one skips and says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.device.guard import Guard
from tests.device.lab import Device, disk_image, mounted
from tests.device.roots import cache, root_tar

TOP = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", default=" ".join(SUITES), help="Debian releases to boot")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", metafunc.config.getoption("--suite").split(), scope="session")


def why_not() -> str:
    """What this machine lacks for booting a device, "" if nothing."""
    if os.geteuid():
        return "needs root"
    for tool in ("systemd-nspawn", "nsenter", "mkfs.ext4", "tar", "ip"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if not mounted("cgroup2"):
        return "no cgroup2 is mounted"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    return ""


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The built packages by name."""
    found = {path.name.partition("_")[0]: path for path in (TOP / "dist").glob("*_all.deb")}
    if "edgeguard" not in found:
        pytest.skip("no package in dist/: make deb")
    return found


@pytest.fixture(scope="session")
def image(suite: str) -> Path:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return disk_image(root_tar(suite), cache())


@pytest.fixture
def boot(image: Path) -> Iterator[Callable[..., Device]]:
    """Boots clean devices; all are taken away at the end of the test."""
    devices: list[Device] = []

    def booted(**options: str) -> Device:
        device = Device(image, **options)
        devices.append(device)
        device.start()
        return device

    yield booted
    for device in devices:
        device.close()


@pytest.fixture(scope="module")
def guard(image: Path, packages: dict[str, Path]) -> Iterator[Guard]:
    """EdgeGuard, installed and done with learning, on a device that the tests of a module share."""
    with Device(image) as device:
        guard = Guard(device)
        guard.install(packages["edgeguard"])
        guard.learned()
        yield guard
