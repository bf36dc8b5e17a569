"""Directories that are not listed again, because their change time is as it was: on each file system of which we
believe that it keeps these times, whatever is done to a directory gives it another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "unit", "files"))
from test_timely import CHANGES, counting, made, once, same_both_ways, tick

from edgeguard.daemon.times import Disturbances
from edgeguard.sensors import timely
from tests.root.own_mounts import own_mounts

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts of its own")]

MAKERS = {
    "ext2": ("mkfs.ext2", "-qF"),
    "ext3": ("mkfs.ext3", "-qF"),
    "ext4": ("mkfs.ext4", "-qF"),
    "ext4 with times in seconds": ("mkfs.ext4", "-qF", "-I", "128"),
    "xfs": ("mkfs.xfs", "-qf"),
}
SIZE = 310 << 20  # bytes, none of them written: xfs makes nothing smaller


@pytest.fixture(params=MAKERS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    maker, *words = MAKERS[request.param]
    if shutil.which(maker) is None:
        pytest.skip(f"no {maker}")
    image, top = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run([maker, *words, image], check=True, stderr=subprocess.DEVNULL)
    top.mkdir()
    with own_mounts():
        if subprocess.run(["mount", "-o", "loop", image, top], check=False).returncode:
            pytest.skip("no loop devices here, or a kernel without this file system")
        yield top


def test_a_directory_that_changed_has_another_time(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timely.believed({os.lstat(disk).st_dev}, 1 << 62).devices == {os.lstat(disk).st_dev}
    worlds = {}
    for name in CHANGES:
        (disk / name).mkdir()
        worlds[name] = made(disk / name / "root")
        worlds[name].clock = lambda: time.time_ns() + 10**13  # whatever others do above the mount point meanwhile
    tick(worlds["new"])
    since = {name: once(world) for name, world in worlds.items()}
    listed = counting(monkeypatch)
    for name, world in worlds.items():
        listed.clear()
        assert world.sweep(since=since[name]) == {}
        assert sum(listed.values()) == 1
        CHANGES[name](world)
        same_both_ways(world, since[name])
        assert world.told or name == "came and went", name


def test_each_mount_is_a_disturbance(tmp_path: Path) -> None:
    """Also one that is gone again when somebody asks."""
    with own_mounts():
        disturbances = Disturbances()
        assert not disturbances.any()
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        assert disturbances.any()
        assert not disturbances.any()
        subprocess.run(["umount", tmp_path], check=True)
        assert disturbances.any()
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        subprocess.run(["umount", tmp_path], check=True)
        assert disturbances.any()
        assert not disturbances.any()
