"""Sensor `host` on a made-up /proc: settings, modules, mounts, and the writes that are told at once."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import DecodeError
from edgeguard.linux import mounts
from edgeguard.model import Actor, Observation, Origin, Status
from edgeguard.sensors import Context, parse_modules, parse_mounts, parse_sysctl
from edgeguard.sensors.host import Host

MOUNTINFO = rb"""22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:5 - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
28 27 254:0 /srv/my\040\012data /mnt/a\040b rw,nosuid,relatime - ext4 /dev/vda1 rw
29 27 0:30 / /run/user/1000 rw,nosuid,nodev shared:9 master:3 - tmpfs tmpfs rw,size=10%
30 27 0:31 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw
31 27 0:32 / /tmp ro,nosuid - tmpfs tmpfs rw
32 27 0:33 / /data rw - ext4 /dev/sda1 ro
33 27 0:34 net:[1] /run/netns/x rw - nsfs nsfs rw
34 27 0:35 / /srv rw - nfs4 host:/x rw
"""
MODULES = b"""usbhid 65536 1 hid_generic,hid_x, Live 0x0000000000000000
evil 16384 0 - Live 0x0000000000000000 (OE)
broken
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for key, value in (("kernel.kptr_restrict", "2"), ("kernel.core_pattern", "core"), ("kernel.sysrq", "438")):
        path = tmp_path / parse_sysctl.path_of(key)[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_bytes(MOUNTINFO)
    (tmp_path / "proc/modules").write_bytes(MODULES)
    return tmp_path


def by_kind(observations: list[Observation], kind: str) -> dict[str, Observation]:
    return {each.subject: each for each in observations if each.kind == kind}


def test_observes_settings_modules_mounts(root: Path) -> None:
    sensor = Host(Context(root=str(root)))
    sensor.start()
    seen = list(sensor.observe(9))
    sensor.close()
    assert by_kind(seen, "sysctl")["kernel.kptr_restrict"].columns == {"value": "2", "level": 2, "ordered": True}
    assert by_kind(seen, "sysctl")["kernel.core_pattern"].columns == {"value": "core", "level": 0, "ordered": False}
    assert by_kind(seen, "module")["evil"].columns == {"size": 16384, "used_by": (), "taint": "OE"}
    assert by_kind(seen, "module")["usbhid"].columns["used_by"] == ("hid_generic", "hid_x")
    mounted = by_kind(seen, "mount")
    assert mounted["/mnt/a b"].columns["options"] == ("nosuid", "bind")
    assert mounted["/tmp"].columns["options"] == ("ro", "nosuid")  # the one on top
    assert mounted["/data"].columns["options"] == ("ro",)  # read-only by its file system
    assert mounted["/run/user/1000"].columns["category"] == "transient"
    assert mounted["/srv"].columns["category"] == "network"
    assert mounted["/"].columns == {"fstype": "ext4", "source": "/dev/vda1", "options": (), "category": "disk"}
    assert "/run/netns/x" not in mounted
    assert by_kind(seen, "sshd") == {}


@pytest.mark.parametrize("mechanism", ["fanotify", "inotify"])
def test_a_write_wakes_the_loop_and_is_told(root: Path, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    who = Actor(pid=os.getpid(), exe="/usr/sbin/sysctl")
    sensor = Host(Context(root=str(root), actor_of=lambda pid: who._replace(pid=pid)))
    if mechanism == "inotify":
        monkeypatch.setattr("edgeguard.sensors.host.MECHANISMS", ("inotify",))
    elif os.geteuid() != 0:
        pytest.skip("fanotify needs CAP_SYS_ADMIN")
    rung = sensor.start()
    assert rung.name == mechanism
    assert rung.proven
    list(sensor.observe(1))
    path = root / parse_sysctl.path_of("kernel.kptr_restrict")[1:]
    descriptor = sensor.fileno()
    assert descriptor is not None
    with select.epoll() as loop:
        loop.register(descriptor, select.EPOLLIN)
        assert loop.poll(0) == []
        path.write_text("0\n")
        assert loop.poll(2) != []
        seen = list(sensor.ready(2))
        assert {(each.subject, each.columns["level"], each.origin) for each in seen} == {
            ("kernel.kptr_restrict", 0, Origin.LIVE)
        }
        assert seen[-1].actor.pid == (os.getpid() if mechanism == "fanotify" else None)
        assert loop.poll(0) == []
    assert list(sensor.ready(3)) == []
    sensor.close()


def test_another_proc_than_the_one_that_others_write_to_is_no_rung(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own test would succeed there: what we open ourselves is told."""
    monkeypatch.setattr("edgeguard.sensors.host._proc_root", lambda root: (root, False))
    rung = Host(Context(root=str(root))).start()
    assert rung.name == "polling"
    assert {why for _, why in rung.tried} == {"our /proc is not the one that others write to"}


def test_settings_that_cannot_be_read_at_all_are_said(tmp_path: Path) -> None:
    rung = Host(Context(root=str(tmp_path))).start()
    assert rung.name == "polling"
    assert any(line.startswith("no kernel setting can be read") for line in rung.blind)


def test_mounts_that_come_and_go(root: Path) -> None:
    sensor = Host(Context(root=str(root)))
    sensor.start()
    assert list(sensor.ready(1)) == []
    other = MOUNTINFO.replace(b"/srv rw - nfs4", b"/srv rw,noexec - nfs4").replace(b"/data", b"/date")
    (root / "proc/self/mountinfo").write_bytes(other)
    assert {(each.subject, each.status) for each in sensor.ready(2)} == {
        ("/srv", Status.PRESENT),
        ("/date", Status.PRESENT),
        ("/data", Status.ABSENT),
    }
    sensor.close()


def test_what_cannot_be_read_is_told(root: Path) -> None:
    path = root / parse_sysctl.path_of("kernel.kptr_restrict")[1:]
    path.unlink()
    os.mkfifo(path)  # must not stop us
    sensor = Host(Context(root=str(root)))
    [seen] = [each for each in sensor.observe(1) if each.subject == "kernel.kptr_restrict"]
    assert seen.status is Status.UNREADABLE
    assert "regular file" in seen.note


def test_an_empty_root_is_quiet(tmp_path: Path) -> None:
    sensor = Host(Context(root=str(tmp_path)))
    rung = sensor.start()
    assert rung.name == "polling"
    assert rung.blind
    assert [each for each in sensor.observe(1) if each.status is Status.PRESENT] == []
    sensor.close()


@pytest.mark.parametrize(
    ("key", "weaker", "stronger"),
    [
        ("kernel.kptr_restrict", "0", "1"),
        ("kernel.unprivileged_bpf_disabled", "2", "1"),
        ("kernel.unprivileged_userns_clone", "1", "0"),
        ("fs.suid_dumpable", "2", "0"),
        ("net.ipv4.ip_forward", "1", "0"),
        ("net.ipv4.conf.all.rp_filter", "2", "1"),
        ("net.ipv6.conf.all.accept_source_route", "1", "-1"),
        ("kernel.perf_event_paranoid", "-1", "3"),
        ("vm.mmap_min_addr", "4096", "65536"),
        ("user.max_user_namespaces", "15000", "0"),
        ("kernel.sysrq", "1", "438"),
        ("kernel.sysrq", "438", "176"),
        ("kernel.sysrq", "16", "0"),
        ("kernel.kptr_restrict", "nonsense", "0"),
    ],
)
def test_levels(key: str, weaker: str, stronger: str) -> None:
    assert parse_sysctl.level(key, weaker) < parse_sysctl.level(key, stronger)


def test_equal_levels() -> None:
    assert parse_sysctl.level("net.ipv4.tcp_syncookies", "1") == parse_sysctl.level("net.ipv4.tcp_syncookies", "2")
    assert len(set(parse_sysctl.KEYS)) == len(parse_sysctl.KEYS) > 35


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for module in parse_modules.parse(data):
        assert module.size >= 0
    with contextlib.suppress(DecodeError):
        for mount in mounts.parse(b"1 2 0:1 / /x rw - ext4 d rw\n" + data):
            assert parse_mounts.category(mount) or mount.fstype in ("nsfs", "autofs")
            parse_mounts.options(mount)
    for key in parse_sysctl.KEYS:
        assert parse_sysctl.level(key, os.fsdecode(data)) >= -1


def test_a_module_of_impossible_size_is_none() -> None:
    assert list(parse_modules.parse(b"big " + b"9" * 5000 + b" 0 - Live 0x0\n")) == []
