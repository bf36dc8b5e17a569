"""Devices for the journeys. A machine that cannot boot one skips and says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device.emulated import BOARDS, Emulated
from tests.device.guard import Guard
from tests.device.images import image as machine_image
from tests.device.lab import Device, disk_image, mounted
from tests.device.prepare import frozen, guarded
from tests.device.roots import root_tar

TOP = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", default=" ".join(SUITES), help="Debian releases to boot")
    parser.addoption("--arch", default="arm64", choices=sorted(BOARDS), help="architecture of emulated devices")
    parser.addoption("--long", action="store_true", help="all packages, slips and days; else some of each")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        # indirect, as a fixture: else pytest orders the tests of a module by their own parameters
        metafunc.parametrize("suite", metafunc.config.getoption("--suite").split(), indirect=True, scope="session")


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release."""
    return str(request.param)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Is there time for all of it?"""
    return bool(request.config.getoption("--long"))


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


def why_not_emulated(arch: str) -> str:
    """What this machine lacks for emulating a device, "" if nothing."""
    for tool, package in ((BOARDS[arch].program, BOARDS[arch].package), ("qemu-img", "qemu-utils"), ("zstd", "zstd")):
        if not shutil.which(tool):
            return f"{tool} is not installed (package {package})"
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
    return disk_image(root_tar(suite))


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


@pytest.fixture(scope="session")
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--arch"))


@pytest.fixture(scope="session")
def emulate(arch: str, suite: str) -> Callable[..., Emulated]:
    """Makes an emulated device that is not started yet; whoever made it closes it (`with`).

    It thaws unless `boot=True`, which a device with other parts (`extra=`, `sd=`, `rtc=`) needs; with `package=` it has
    that one installed and is done with learning.
    """
    reason = why_not_emulated(arch)
    if reason:
        pytest.skip(reason)
    try:
        image, kept = machine_image(arch, suite), frozen(arch, suite)
    except RuntimeError as error:
        pytest.skip(f"no device to emulate: {error}")

    def device(*, boot: bool = False, package: Path | None = None, **options: Any) -> Emulated:
        thaw = guarded(arch, suite, package) if package else kept
        return Emulated(image, arch, frozen=None if boot else thaw, **options)

    return device
