"""Processes, USB devices, kernel settings and ports, on children and trees of our own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from edgeguard.errors import RemediationFailed, RemediationRefused
from edgeguard.linux import nft
from edgeguard.remediations import Order, World, network, preflight, process, sysctl, usb


def _order(kind, subject, observed=None, reference=None, ports=frozenset()):
    return Order("v", "F-7K2M", "EG-X", kind, subject, observed or {}, reference, ports)


# -- processes


@pytest.fixture
def child(tmp_path):
    """A process whose program was deleted while it runs."""
    program = tmp_path / "evil"
    with open(os.path.realpath("/usr/bin/sleep"), "rb") as file:
        program.write_bytes(file.read())
    program.chmod(0o755)
    started = subprocess.Popen([str(program), "600"])
    while not os.readlink(f"/proc/{started.pid}/exe").endswith("evil"):
        pass
    program.unlink()
    yield started
    started.kill()
    started.wait()


def _found(child, **changes):
    seen = preflight.read_process("/proc", child.pid)
    columns = {
        "pid": child.pid,
        "start": process.started_at(seen.start),
        "exe": process.plain(seen.exe),
        "exe_state": "deleted",
    }
    return _order("process", columns["exe"], columns | changes)


def test_a_deleted_program_is_stopped(child):
    verb = process.StopProcess()
    plan = verb.prepare(_found(child), World())
    assert not verb.verify(plan, World())
    assert "was stopped" in verb.apply(plan, World())
    assert verb.verify(plan, World())
    assert child.wait(5) == -signal.SIGKILL
    assert "cannot be brought back" in verb.revert(plan, World())


@pytest.mark.parametrize(
    "changes",
    [{"start": 1}, {"start": 1_763_880_000_000}, {"exe": "/usr/bin/other"}, {"pid": "1"}, {"pid": -1}, {"start": None}],
)
def test_another_process_than_the_one_found_is_not_stopped(child, changes):
    with pytest.raises(RemediationRefused):
        process.StopProcess().prepare(_found(child, **changes), World())
    assert child.poll() is None


def test_a_process_that_ended_meanwhile(child):
    verb = process.StopProcess()
    order = _found(child)
    plan = verb.prepare(order, World())
    child.kill()
    child.wait()
    with pytest.raises(RemediationRefused):
        verb.apply(plan, World())
    with pytest.raises(RemediationRefused):
        verb.prepare(order, World())


def test_a_program_that_the_baseline_knows_is_not_stopped():
    child = subprocess.Popen(["/usr/bin/sleep", "600"])
    try:
        while "sleep" not in os.readlink(f"/proc/{child.pid}/exe"):
            pass
        with pytest.raises(RemediationRefused, match="baseline knows"):
            process.StopProcess().prepare(_found(child, exe_state="ok"), World(lookup=lambda _path: {}))
        with pytest.raises(RemediationRefused, match="ordinary file"):
            process.StopProcess().prepare(_found(child), World())
    finally:
        child.kill()
        child.wait()


def test_ourselves_are_not_stopped(monkeypatch):
    seen = preflight.read_process("/proc", os.getpid())
    order = _order(
        "process",
        seen.exe,
        {"pid": seen.pid, "start": process.started_at(seen.start), "exe": seen.exe, "exe_state": "ok"},
    )
    with pytest.raises(RemediationRefused, match="part of EdgeGuard"):
        process.StopProcess().prepare(order, World())


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", ""),
        ("0::/system.slice/a b;reboot.service\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(cgroup, unit):
    assert process.unit_of(cgroup) == unit


# -- USB


@pytest.fixture
def stick(tmp_path):
    """sysfs with one device at 1-1.2."""
    real = tmp_path / "sys/devices/usb1/1-1/1-1.2"
    real.mkdir(parents=True)
    (tmp_path / "sys/bus/usb/devices").mkdir(parents=True)
    os.symlink(real, tmp_path / "sys/bus/usb/devices/1-1.2")
    for name, text in (("idVendor", "0781"), ("idProduct", "5567"), ("serial", "A\x1bB"), ("authorized", "1")):
        (real / name).write_text(text + "\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    return real, World(sys=str(tmp_path / "sys"), proc=str(tmp_path / "proc"))


SEEN = {"vendor": "0781", "product": "5567", "serial": "A\x1bB", "port": "1-1.2"}


def test_a_usb_device_is_switched_off_and_on(stick):
    real, world = stick
    verb = usb.DeauthoriseUsb()
    plan = json.loads(json.dumps(verb.prepare(_order("usb", "0781:5567/A", SEEN), world)))
    verb.apply(plan, world)
    assert verb.verify(plan, world)
    assert (real / "authorized").read_text().startswith("0")
    verb.revert(plan, world)
    assert (real / "authorized").read_text().startswith("1")


@pytest.mark.parametrize(
    "changes",
    [{"port": "../../x"}, {"port": "usb1"}, {"port": "1-1.2/.."}, {"port": None}, {"vendor": "ffff"}, {"serial": ""}],
)
def test_a_port_that_is_none_or_another_device_is_refused(stick, changes):
    real, world = stick
    with pytest.raises(RemediationRefused):
        usb.DeauthoriseUsb().prepare(_order("usb", "s", SEEN | changes), world)
    assert (real / "authorized").read_text() == "1\n"


# -- kernel settings


@pytest.fixture
def settings(tmp_path):
    directory = tmp_path / "proc/sys/net/ipv4/conf/eth0.1"
    directory.mkdir(parents=True)
    (directory / "rp_filter").write_text("0\n")
    (tmp_path / "proc/sys/kernel").mkdir()
    (tmp_path / "proc/sys/kernel/printk").write_text("7\t4\t1\t7\n")
    (tmp_path / "proc/secret").write_text("x")
    return World(proc=str(tmp_path / "proc"))


def test_a_setting_goes_back_to_its_reference_value(settings):
    verb = sysctl.SetSysctl()
    order = _order("sysctl", "net.ipv4.conf.eth0/1.rp_filter", reference={"value": "2"})
    plan = verb.prepare(order, settings)
    assert not verb.verify(plan, settings)
    verb.apply(plan, settings)
    assert verb.verify(plan, settings)
    verb.revert(plan, settings)
    assert not verb.verify(plan, settings)


def test_a_value_of_several_numbers_is_compared_without_its_blanks(settings):
    verb = sysctl.SetSysctl()
    plan = verb.prepare(_order("sysctl", "kernel.printk", reference={"value": "7 4 1 7"}), settings)
    assert verb.verify(plan, settings)


@pytest.mark.parametrize(
    ("key", "reference"),
    [
        ("kernel.printk", None),
        ("kernel.printk", {}),
        ("kernel.printk", {"value": "1\n2"}),
        ("kernel.printk", {"value": "9" * 300}),
        ("kernel.modules_disabled", {"value": "1"}),
        ("kernel.absent", {"value": "1"}),
        ("kernel.../.../secret", {"value": "1"}),
        ("kernel.//secret", {"value": "1"}),
        ("kernel", {"value": "1"}),
        ("../secret", {"value": "1"}),
        ("kernel.printk\n", {"value": "1"}),
    ],
)
def test_a_key_or_value_that_is_not_one_is_refused(settings, key, reference):
    with pytest.raises(RemediationRefused):
        sysctl.SetSysctl().prepare(_order("sysctl", key, reference=reference), settings)


# -- ports


def _nft(tmp_path, body):
    """A stand-in for nft that keeps what it was told."""
    program = tmp_path / "nft"
    program.write_text(f"#!{sys.executable} -IS\nimport sys\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_no_nft_is_a_refusal_with_its_reason(tmp_path):
    world = World(nft=str(tmp_path / "absent"))
    with pytest.raises(RemediationRefused, match="not installed"):
        network.BlockPort().prepare(_order("listener", "tcp/0.0.0.0:4444"), world)


def test_an_nft_that_fails_says_why(tmp_path):
    world = World(nft=_nft(tmp_path, "sys.exit('Error: no')"))
    with pytest.raises(RemediationFailed, match="Error: no"):
        network.BlockPort().apply({"protocol": "tcp", "port": 4444, "before": False}, world)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nftables": 3}', '{"nftables": [{"table": 3}]}', "nonsense"])
def test_odd_words_from_nft_are_no_crash(tmp_path, text):
    program = _nft(tmp_path, f"print({text!r})")
    with contextlib.suppress(nft.NftFailed):
        assert nft.blocked("tcp", program) == set()


@pytest.mark.parametrize(
    "subject", ["tcp/0.0.0.0:0", "tcp/0.0.0.0:65536", "sctp/0.0.0.0:1", "tcp/x", "", "tcp/[::]:4444}; flush", "tcp/:²"]
)
def test_a_subject_that_is_no_port_is_refused(subject):
    with pytest.raises(RemediationRefused):
        network.parse_subject(subject)


def test_subjects_that_are_ports():
    assert network.parse_subject("tcp/0.0.0.0:4444") == ("tcp", 4444)
    assert network.parse_subject("udp/[fe80::1%eth0]:546") == ("udp", 546)


def test_a_loopback_listener_is_left_alone():
    with pytest.raises(RemediationRefused, match="this device only"):
        network.BlockPort().prepare(_order("listener", "tcp/127.0.0.1:4444", {"scope": "loopback"}), World())


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_port_out_of_range_never_reaches_nft(port):
    with pytest.raises(ValueError, match="out of range"):
        nft.block("tcp", port, "/nonexistent")
