"""Watches that lie below mounts of other file systems: what is watched is learned, swept and heard there, and nothing
else on the way. Real mounts in a mount namespace of each test's own; the root is the file system that tests run on."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "unit", "files"))
from files_world import ABSENT, PRESENT, UNREADABLE, World, statuses

from edgeguard.daemon.sensors import concerning
from edgeguard.model import Actor, Origin, Watch
from edgeguard.sensors import Context
from edgeguard.sensors.deep import Position, read_slice
from edgeguard.sensors.files import Files
from edgeguard.sensors.revisit import complete, revisit
from tests.root.own_mounts import own_mounts

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts of its own")]

SETID = Watch("/", "other", only="setid")
APP = Watch("/srv/app", "program", protect=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that is / for the test."""
    with own_mounts():
        root = tmp_path / "root"
        for name in ("etc", "srv", "home", "var"):
            (root / name).mkdir(parents=True)
        yield root


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def tmpfs(point: Path) -> Path:
    point.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=0755", "none", point)
    return point


def ext4(point: Path, tmp_path: Path) -> Path:
    """A small one on a loop device, which goes with it."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-qF", image], check=True)
    point.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-o", "loop", image, point], check=False).returncode:
        pytest.skip("no loop devices here")
    return point


def world_of(place: Path, *watches: Watch) -> World:
    return World(place, list(watches))


def known(world: World) -> list[str]:
    """The paths that were learned, without the directories that hold them."""
    found = [os.fsdecode(path) for path, entry in world.manifest.below(b"") if entry.st_mode & 0o170000 != 0o040000]
    return sorted(found)


def asked(world: World, *targets: str) -> dict:
    """What a helper tells of some paths and of all that is below them."""
    seen = {}
    emit = lambda one: seen.update({one.subject: one})  # noqa: E731
    revisit(world.watches, str(world.root), world.manifest, targets, 1, Origin.SWEEP, emit)
    return seen


def read_thoroughly(world: World) -> dict:
    seen = {}
    with io.BytesIO(world.observed) as old:
        read_slice(
            world.watches, str(world.root), world.manifest, old, Position(), 1, 1.0,
            lambda one: seen.update({one.subject: one}), slices=1, seconds=60.0, hash_file_max=1 << 30,
        )  # fmt: skip
    return seen


@pytest.mark.parametrize("deeper", ["", "/data", "/data/more"])
@pytest.mark.parametrize("between", [1, 2])
def test_a_watch_below_a_mount_that_nothing_watches(place, tmp_path, deeper, between):
    tmpfs(place / "srv")
    for number in range(1, between):
        tmpfs(place / f"srv{'/data' * number}")
    path = f"/srv{'/data' * (between - 1)}{deeper}/app"
    ext4(place / path[1:], tmp_path)
    watch = Watch(path, "program", protect=True)
    world = world_of(place, watch, SETID, Watch("/etc", "config"))
    world.write(f"{path}/bin/tool", b"as it should be")
    world.write(f"{path}/bin/other", b"as it should be")
    world.write("/srv/su", b"nobody's", mode=0o4755)
    world.write("/etc/hosts")
    vault = tmp_path / "vault"
    vault.mkdir()
    world.learn(vault=str(vault))
    assert known(world) == sorted(["/etc/hosts", f"{path}/bin/other", f"{path}/bin/tool"])
    assert world.summary.protected == len(b"as it should be")
    assert ("/srv", "tmpfs is mounted there, and only what watches name below it is looked at") in world.summary.skipped
    assert world.sweep() == {}
    assert world.sweep(full=True) == {}
    assert read_thoroughly(world) == {}

    world.write(f"{path}/bin/tool", b"not as it should be")
    os.unlink(world.path(f"{path}/bin/other"))
    world.write("/srv/su2", b"nobody's", mode=0o4755)
    expected = {f"{path}/bin/tool": PRESENT, f"{path}/bin/other": ABSENT}
    assert statuses(read_thoroughly(world)) == {f"{path}/bin/tool": PRESENT}
    assert {path: now for path, now in statuses(world.sweep()).items() if "/bin/" in path} == expected
    assert {path: now for path, now in statuses(world.sweep(full=True)).items() if "/bin/" in path} == expected
    for target in (path, f"{path}/bin", "/srv"):
        told = {path: now for path, now in statuses(asked(world, target)).items() if "/bin/" in path}
        assert told == expected, target
        assert not [path for path in statuses(asked(world, target)) if "/su" in path]


def test_copies_are_kept_there(place, tmp_path):
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    world = world_of(place, APP)
    world.write("/srv/app/tool", b"keep me")
    world.learn()
    vault = tmp_path / "vault"
    vault.mkdir()
    digests = {path: entry.digest for path, entry in world.manifest.below(b"")}
    expected = lambda path: digests.get(os.fsencode(path), b"")  # noqa: E731
    assert complete(world.watches, str(place), expected, str(vault)) == 1


def test_what_a_mount_hides_is_neither_gone_nor_changed(place):
    world = world_of(place, SETID, APP)
    world.write("/srv/bin/su", b"with other rights", mode=0o4755)
    world.write("/srv/app/tool")
    world.learn()
    assert known(world) == ["/srv/app/tool", "/srv/bin/su"]
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    world.write("/srv/bin/passwd", b"nobody's", mode=0o4755)
    told = {"/srv/app/tool": ABSENT}
    assert statuses(asked(world, "/srv")) == told
    assert statuses(world.sweep()) == told
    assert statuses(world.sweep(full=True)) == told
    subprocess.run(["umount", place / "srv/app"], check=True)
    subprocess.run(["umount", place / "srv"], check=True)
    assert not [one for one in world.sweep().values() if one.status is ABSENT]
    assert world.sweep(full=True) == {}


def test_what_is_unmounted_is_gone(place):
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    world = world_of(place, APP, SETID)
    world.write("/srv/app/bin/tool")
    world.learn()
    subprocess.run(["umount", place / "srv/app"], check=True)
    assert statuses(world.sweep())["/srv/app/bin/tool"] is ABSENT
    assert statuses(world.sweep(full=True))["/srv/app/bin/tool"] is ABSENT


def test_a_mount_that_appears_later(place):
    world = world_of(place, APP, SETID, Watch("/home/*/.ssh", "key"))
    world.learn()
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    world.write("/srv/app/tool")
    world.write("/srv/su", b"nobody's", mode=0o4755)
    tmpfs(place / "home/anna")
    world.write("/home/anna/.ssh/authorized_keys")
    points = ["/srv", "/srv/app", "/home/anna", "/var/tmp"]
    assert list(concerning(world.watches, points)) == points[:-1]
    for told in (asked(world, *points[:-1]), world.sweep(), world.sweep(full=True)):
        assert {path for path in told if path.rpartition("/")[2] in {"tool", "su", "authorized_keys"}} == {
            "/srv/app/tool", "/home/anna/.ssh/authorized_keys",
        }  # fmt: skip


def test_wildcards_reach_through_mounts(place):
    tmpfs(place / "home/anna")
    tmpfs(place / "srv/box")
    tmpfs(place / "var/lib/one")
    wild = (Watch("/home/*/.ssh", "key"), Watch("/*/box/conf*", "config"), Watch("/var/lib/*", "x"))
    world = world_of(place, SETID, *wild)
    for path in ("/home/anna/.ssh/id", "/home/bert/.ssh/id", "/srv/box/conf.d/a", "/var/lib/one/deep/b"):
        world.write(path)
    world.write("/home/anna/bin/su", mode=0o4755)
    world.write("/home/anna/.profile")
    world.write("/srv/box/other")
    world.learn()
    assert known(world) == ["/home/anna/.ssh/id", "/home/bert/.ssh/id", "/srv/box/conf.d/a", "/var/lib/one/deep/b"]
    assert world.sweep(full=True) == {}


def test_mounts_on_top_of_each_other(place):
    tmpfs(place / "srv")
    (place / "srv/app").mkdir()
    (place / "srv/app/below").write_text("hidden by the next")
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    tmpfs(place / "srv/app")
    world = world_of(place, APP, SETID)
    world.write("/srv/app/above")
    world.learn()
    assert known(world) == ["/srv/app/above"]


def test_bind_mounts(place):
    tmpfs(place / "srv")
    world = world_of(place, APP, SETID, Watch("/srv/one.conf", "config", recurse=False))
    world.write("/var/app/tool")
    world.write("/var/other/su", mode=0o4755)
    world.write("/var/one.conf")
    (place / "srv/app").mkdir()
    (place / "srv/all").mkdir()
    (place / "srv/one.conf").touch()
    mount("--bind", place / "var/app", place / "srv/app")
    mount("--bind", place / "var", place / "srv/all")  # named by nobody: not gone through a second time
    mount("--bind", place / "var/one.conf", place / "srv/one.conf")
    world.learn()
    assert known(world) == ["/srv/app/tool", "/srv/one.conf", "/var/other/su"]
    (place / "srv/app/tool").write_text("other")
    (place / "srv/one.conf").write_text("other")
    assert set(world.sweep()) == {"/srv/app/tool", "/srv/one.conf"}


def test_a_watch_that_is_not_there(place):
    tmpfs(place / "srv")
    tmpfs(place / "srv/data")
    world = world_of(place, Watch("/srv/data/app/conf", "config"), Watch("/etc", "config"))
    world.write("/etc/hosts")
    world.learn()
    assert known(world) == ["/etc/hosts"]
    world.write("/srv/data/app/conf/new")
    assert statuses(world.sweep()) == {"/srv/data/app/conf": PRESENT, "/srv/data/app/conf/new": PRESENT}


def test_exclusions_between(place):
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    inner = Watch("/srv/app", "program", exclude=("/srv/app/cache/**",))
    outer = Watch("/", "other", exclude=("/srv", "/srv/**"))
    world = world_of(place, outer, inner, Watch("/srv/app/cache/keys", "key"))
    for path in ("/srv/x", "/srv/app/tool", "/srv/app/cache/x", "/srv/app/cache/keys/id"):
        world.write(path)
    world.learn()
    assert [path for path in known(world) if path.startswith("/srv")] == ["/srv/app/cache/keys/id", "/srv/app/tool"]
    assert world.summary.skipped == []  # nobody asks for the rest
    assert world.sweep() == {}


def test_symlinks_are_not_followed(place):
    tmpfs(place / "srv")
    tmpfs(place / "srv/real")
    world = world_of(place, APP, Watch("/srv/real/none", "other"), Watch("/home/*/app", "program"))
    world.write("/srv/real/tool")
    (place / "srv/app").symlink_to(place / "srv/real")
    (place / "home/anna").symlink_to(place / "srv/real")
    world.write("/srv/real/app/tool")
    world.learn()
    assert known(world) == ["/srv/app"]  # as the link that it is


def test_a_mount_that_cannot_be_read_is_said(place, monkeypatch):
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    world = world_of(place, APP, SETID)
    world.write("/srv/app/tool")
    world.learn()
    real = os.open

    def refused(path, *more, **others):
        if path == f"{place}/srv":
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **others)

    monkeypatch.setattr("edgeguard.sensors.walk.os.open", refused)
    told = world.sweep(full=True)
    assert statuses(told) == {"/srv": UNREADABLE}


class Live:
    """The sensor on the world, as a daemon has it. Nothing is marked but what the watches lie on."""

    def __init__(self, world: World, work: Path) -> None:
        work.mkdir()
        self.world = world
        context = Context(str(world.root), actor_of=lambda pid: Actor(pid=pid))
        self.sensor = Files(context, world.watches, world.manifest, str(work))
        self.rung = self.sensor.start()

    def seen(self, script: str, last: str) -> dict:
        """What is told of what a shell does, until `last` is told."""
        subprocess.run(["sh", "-ec", script], cwd=self.world.root, check=True)
        found = {}
        poll = select.poll()
        poll.register(self.sensor.fileno(), select.POLLIN)
        end = time.monotonic() + 10
        while last not in found:
            left = end - time.monotonic()
            assert left > 0, f"only saw {list(found)[:20]}"
            if poll.poll(left * 1000):
                found.update({one.subject: one for one in self.sensor.ready(7)})
        return found


@contextlib.contextmanager
def listening(world: World, tmp_path: Path) -> Iterator[Live]:
    live = Live(world, tmp_path / "work")
    try:
        yield live
    finally:
        live.sensor.close()


def test_it_is_heard_there_and_is_what_was_learned(place, tmp_path):
    tmpfs(place / "srv")
    tmpfs(place / "srv/app")
    tmpfs(place / "home/anna")
    world = world_of(place, APP, Watch("/home/*/.ssh", "key"))
    for path in ("/srv/app/bin/tool", "/home/anna/.ssh/id", "/srv/other", "/home/anna/.profile"):
        world.write(path)
    world.learn()
    with listening(world, tmp_path) as live:
        assert live.rung.name == "fanotify"
        assert live.rung.blind == ("/home/*/.ssh: who changed a file is not known there",)
        found = live.seen(
            "touch srv/other home/anna/.profile srv/app/bin/tool home/anna/.ssh/id; echo x > home/anna/.ssh/id;"
            " echo x > srv/app/bin/tool",
            "/srv/app/bin/tool",
        )
        found.update(live.seen("echo y >> home/anna/.ssh/id", "/home/anna/.ssh/id"))
        assert set(found) == {"/srv/app/bin/tool", "/home/anna/.ssh/id"}
        for path, seen in found.items():
            reference = world.manifest.lookup(os.fsencode(path))
            assert reference is not None
            assert reference.digest != seen.columns["sha256"]
        assert found["/srv/app/bin/tool"].actor.pid


def test_a_mount_of_its_own_below_a_wildcard_is_heard_from_when_it_comes(place, tmp_path):
    world = world_of(place, Watch("/home/*/.ssh", "key"), Watch("/etc", "config"))
    world.write("/home/bert/.ssh/id")
    world.learn()
    with listening(world, tmp_path) as live:
        assert live.rung.blind == ()
        tmpfs(place / "home/anna")
        world.write("/home/anna/.ssh/id")
        assert live.sensor.remark() == ("/home/*/.ssh: who changed a file is not known there",)
        assert set(live.seen("echo y >> home/anna/.ssh/id", "/home/anna/.ssh/id")) == {"/home/anna/.ssh/id"}
        subprocess.run(["umount", place / "home/anna"], check=True)
        assert live.sensor.remark() == ()
