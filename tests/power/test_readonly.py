"""A state that cannot be written to, or does not last, or lies on a disk without a byte left: the daemon watches, says
so in status and doctor, and calls nothing durable that is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.power import disk
from tests.power.busy import COLLECTOR_KEY, seal_all
from tests.power.guarded import Guarded

pytestmark = pytest.mark.power


@pytest.fixture
def own_disk(own_place: Path) -> Iterator[Path]:
    image, where = own_place / "readonly.raw", own_place / "readonly"
    with open(image, "wb") as file:
        file.truncate(128 << 20)
    disk.run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    with disk.mounted(image, where):
        yield where


@pytest.fixture
def device(world: Path, own_disk: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    guarded = Guarded(world / request.node.name[5:50], own_disk)
    guarded.make(COLLECTOR_KEY)
    try:
        yield guarded
    finally:
        guarded.stop(9)


def remount(where: Path, mode: str) -> None:
    disk.run("mount", "-o", f"remount,{mode}", where)


def log(device: Guarded) -> dict[str, Any]:
    found: dict[str, Any] = device.status()["areas"]["log"]
    return found


def doctor(device: Guarded) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in device.ask("Doctor")[0]["checks"]}


def told(device: Guarded, what: Callable[[dict[str, Any]], bool]) -> None:
    device.until(lambda: what(log(device)))


def test_a_read_only_state_from_the_first_start_on(device: Guarded) -> None:
    remount(device.disk, "ro")
    device.start()
    told(device, lambda log: "read-only" in log["error"])
    assert not log(device)["durable"]
    assert log(device)["sequence"] == 0
    checks = doctor(device)
    assert checks["records"]["level"] == "FAIL"
    remount(device.disk, "rw")
    device.stop()
    device.start()
    device.until(device.settled)
    assert log(device)["durable"]


def test_a_read_only_state_with_a_baseline_judges_and_goes_on_when_it_can_write(device: Guarded) -> None:
    device.start()
    device.until(device.settled)
    sequence = log(device)["sequence"]
    device.stop()
    remount(device.disk, "ro")
    device.start()
    device.until(lambda: device.status()["policy"])
    told(device, lambda log: "read-only" in log["error"])
    assert not log(device)["durable"]
    assert log(device)["sequence"] == 0  # nothing is said to be kept
    assert doctor(device)["disk"]["level"] == "FAIL"
    remount(device.disk, "rw")
    told(device, lambda log: not log["error"])
    told(device, lambda log: log["sequence"] > sequence)
    assert log(device)["durable"]


def test_a_state_in_memory_is_said_to_be_lost_at_the_next_start(world: Path, own_place: Path) -> None:
    guarded = Guarded(world / "in-memory", own_place / "in-memory")
    guarded.disk.mkdir()
    guarded.make(COLLECTOR_KEY)
    try:
        guarded.start()
        guarded.until(guarded.settled)
        assert log(guarded)["fleeting"] == "in memory (tmpfs): a restart loses it"
        assert not log(guarded)["durable"]
        assert doctor(guarded)["records"]["level"] == "WARN"
        assert "a restart loses it" in guarded.command("status").stdout
    finally:
        guarded.stop()


@contextlib.contextmanager
def full(where: Path) -> Iterator[None]:
    """Not a byte left."""
    path = where / "filler"
    with open(path, "wb") as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(size))
    try:
        yield
    finally:
        path.unlink()


def test_a_start_on_a_full_disk_with_a_full_spool(device: Guarded) -> None:
    """Records go on into the journals, which are there already; sealed ones of less worth make room for the rest."""
    with open(device._file, "a", encoding="ascii") as file:
        file.write("[budget]\nspool_bytes = 262144\n")
    device.start()
    device.until(device.settled)
    device.stop()
    _noise(device)
    with full(device.disk):
        device.start()
        device.until(device.settled)
        before = log(device)["sequence"]
        device.tool(1).write_bytes(b"changed")
        device.until(lambda: device.finding(device.tool(1)))
        told(device, lambda log: log["sequence"] > before)
        told(device, lambda log: bool(log["let_go"]))
        device.until(lambda: not log(device)["error"])
    device.stop()
    device.start()
    device.until(device.settled)
    assert log(device)["sequence"] > before


def _noise(device: Guarded) -> None:
    """A spool that has no room: verbose segments of four KiB."""
    from edgeguard.records import compose
    from edgeguard.records.compose import Moment
    from edgeguard.records.spool import Spool

    settings = device.settings
    for turn in range(70):
        spool = Spool(f"{settings.paths.state}/spool", f"{settings.paths.exchange}/outbox", b"noise...........")
        spool.open()
        spool.append(compose.text(f"noise {turn}", Moment(1000 + turn, None)))
        spool.commit()
        spool.close()
        seal_all(device)
