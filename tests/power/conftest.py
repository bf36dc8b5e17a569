"""How many moments, which dice, and the one busy life that the power cuts are made from."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.power import disk
from tests.power.busy import COLLECTOR_KEY, ROUNDS, Facts, Life
from tests.power.disk import Disk
from tests.power.guarded import Guarded

MOMENTS = int(os.environ.get("EDGEGUARD_POWER_MOMENTS", "300"))
SEED = int(os.environ.get("EDGEGUARD_POWER_SEED", "1"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"power: EDGEGUARD_POWER_MOMENTS={MOMENTS} EDGEGUARD_POWER_SEED={SEED}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = disk.missing()
    for item in items if reason else ():
        if item.get_closest_marker("power"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def own_place() -> Iterator[Path]:
    """A tmpfs in a mount namespace of our own: rebuilt disks cost no flash, and nothing of it is seen outside."""
    disk.own_mounts()
    place = Path(tempfile.mkdtemp(prefix="edgeguard-power-"))
    disk.run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", place)
    try:
        yield place
    finally:
        disk.run("umount", place)
        place.rmdir()


@pytest.fixture(scope="session")
def world(own_place: Path) -> Iterator[Path]:
    """A small ext4 for what is watched: a mark on the file system hears of nothing else. It lies below a tmpfs that no
    watch names."""
    image = own_place / "world.raw"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    disk.run("mkfs.ext4", "-q", "-F", image)
    with disk.mounted(image, own_place / "world") as where:
        yield where


class Lived(NamedTuple):
    """What is left of a busy life: the log of its disk, and what was answered when."""

    disk: Disk
    facts: Facts
    guarded: Guarded


@pytest.fixture(scope="session")
def lived(own_place: Path, world: Path) -> Iterator[Lived]:
    dice = random.Random(SEED)
    with Disk(own_place / "lived") as living:
        guarded = Guarded(world / "lived", living.mount)
        guarded.make(COLLECTOR_KEY)
        facts = Facts(living.entries)
        life = Life(guarded, facts, own_place, dice)
        try:
            life.begin()
            for number in range(ROUNDS):
                life.round(number)
            life.end()
        finally:
            guarded.stop(9)
            life.receiver.end()
        living.unmount()
        yield Lived(living, facts, guarded)
