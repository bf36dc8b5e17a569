"""Sensor `host` on this kernel: a write to /proc/sys and a mount wake it, with the writer where fanotify stands."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeguard.linux import uevent
from edgeguard.model import Actor, Observation, Status
from edgeguard.sensors import Context, host
from edgeguard.sensors.host import Host

pytestmark = pytest.mark.root
KEY = "kernel.kptr_restrict"
PATH = "/proc/sys/kernel/kptr_restrict"


@pytest.fixture
def value() -> Iterator[str]:
    """The value of a setting, put back whatever happens."""
    before = Path(PATH).read_text().strip()
    yield before
    Path(PATH).write_text(before)


class Loop:
    """Waits on a started sensor as the daemon does: from before anything happens."""

    def __init__(self, context: Context | None = None) -> None:
        self.sensor = Host(context or Context())
        self.rung = self.sensor.start()
        self._epoll = select.epoll()
        descriptor = self.sensor.fileno()
        assert descriptor is not None
        self._epoll.register(descriptor, select.EPOLLIN)
        list(self.sensor.observe(1))

    def wait(self) -> list[Observation]:
        assert self._epoll.poll(2), "nothing woke the loop"
        seen = list(self.sensor.ready(1))
        assert self._epoll.poll(0) == [], "still awake after everything was read"
        return seen

    def close(self) -> None:
        self._epoll.close()
        self.sensor.close()


@pytest.mark.parametrize("mechanism", ["fanotify", "inotify"])
def test_a_kernel_setting_is_written(value: str, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "MECHANISMS", (mechanism,))
    asked: list[int] = []

    def actor_of(pid: int) -> Actor:
        asked.append(pid)
        return Actor(pid=pid)

    loop = Loop(Context(actor_of=actor_of))
    assert (loop.rung.name, loop.rung.proven) == (mechanism, True)
    other = "1" if value != "1" else "2"
    with subprocess.Popen(["/bin/sh", "-c", f"echo {other} > {PATH}"]) as writer:
        writer.wait()
        [seen] = [each for each in loop.wait() if each.kind == "sysctl"]
        assert (seen.subject, seen.columns["value"]) == (KEY, other)
        assert asked == ([writer.pid] if mechanism == "fanotify" else [])
    loop.close()


def test_a_write_through_a_bind_mount_counts(value: str, tmp_path: Path) -> None:
    loop = Loop()
    script = f"mount --bind /proc/sys {tmp_path} && echo {value} > {tmp_path}/kernel/kptr_restrict"
    subprocess.run(["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script], check=True)
    assert KEY in {each.subject for each in loop.wait()}
    loop.close()


def test_the_mark_outlives_a_dropped_dentry_cache(value: str) -> None:
    loop = Loop()
    drop = Path("/proc/sys/vm/drop_caches")
    drop.write_text("2")
    Path(PATH).write_text(value)
    assert KEY in {each.subject for each in loop.wait()}
    loop.close()


def test_a_mount_comes_changes_and_goes(tmp_path: Path) -> None:
    loop = Loop()
    point = str(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,noexec", "none", point], check=True)
    try:
        [seen] = [each for each in loop.wait() if each.subject == point]
        assert seen.columns == {
            "fstype": "tmpfs",
            "source": "none",
            "options": ("nosuid", "noexec"),
            "category": "memory",
        }
        subprocess.run(["mount", "-o", "remount,bind,nosuid,exec", point], check=True)
        [seen] = [each for each in loop.wait() if each.subject == point]
        assert seen.columns["options"] == ("nosuid",)
    finally:
        subprocess.run(["umount", point], check=True)
    [seen] = [each for each in loop.wait() if each.subject == point]
    assert seen.status is Status.ABSENT
    loop.close()


def test_nothing_of_it_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    Loop().close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_kernel_lets_only_matching_events_through() -> None:
    """The loopback interface tells an event of itself for each that is written; names and state stay as they are."""
    device = Path("/sys/class/net/lo/uevent")
    with uevent.listen((b"add@/devices/virtual/net/",)) as some, uevent.listen((b"add@/module/",)) as none:
        for action in ("change", "add", "change"):
            try:
                device.write_text(action)
            except OSError as error:
                pytest.skip(f"no events of our own: {error}")
        assert list(uevent.read(some)) == [("add", "/devices/virtual/net/lo")]
        assert list(uevent.read(none)) == []
