"""Never lock out: a small /proc and /sys of our own for each way in which an act would cut somebody off."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from edgeguard.remediations import preflight

NOBODY_EXPECTED = frozenset()


class Proc:
    """A /proc that holds what we put there."""

    def __init__(self, base):
        self.base = base / "proc"
        (self.base / "net").mkdir(parents=True)
        (self.base / "self").mkdir()

    def process(self, pid, parent, exe, *, session=0, tty=0, start=100, name="x", sockets=()):
        home = self.base / str(pid)
        (home / "fd").mkdir(parents=True)
        fields = ["S", parent, 0, session or pid, tty, *[0] * 14, start]
        # field 3 onwards; the name may hold brackets and a newline
        (home / "stat").write_text(f"{pid} ({name}) " + " ".join(str(item) for item in fields) + " 0 0\n")
        if exe:
            os.symlink(exe, home / "exe")
        for number, inode in enumerate(sockets):
            os.symlink(f"socket:[{inode}]", home / "fd" / str(number))
        return pid

    def write(self, name, text):
        (self.base / name).write_text(text)

    def carries(self, pid, own=99_999, cgroup=""):
        return preflight.process_carries(pid, preflight.processes(str(self.base)), own, cgroup)


@pytest.fixture
def proc(tmp_path):
    found = Proc(tmp_path)
    found.process(1, 0, "/usr/lib/systemd/systemd")
    found.process(2, 0, "", name="kthreadd")
    return found


@pytest.fixture
def session(proc):
    """sshd, its session, a login shell on pts/0, and what the person runs."""
    proc.process(500, 1, "/usr/sbin/sshd")
    proc.process(600, 500, "/usr/sbin/sshd")
    proc.process(601, 600, "/usr/bin/bash", tty=34816)
    proc.process(700, 601, "/tmp/x", session=601, tty=34816, name="evil ) (\n")
    return proc


@pytest.mark.parametrize("pid", [1, 2, 500, 600, 601])
def test_what_carries_a_login_is_never_stopped(session, pid):
    assert session.carries(pid)


def test_what_somebody_runs_in_a_session_may_be_stopped(session):
    assert session.carries(700) == ""


def test_malware_is_not_protected_by_a_terminal_of_its_own(session):
    session.process(701, 700, "/usr/bin/bash", tty=34817)
    assert session.carries(700) == ""


def test_malware_named_like_sshd_is_not_sshd(session):
    session.process(800, 1, "/tmp/sshd")
    session.process(801, 1, "/usr/local/sbin/sshd")
    assert session.carries(800) == ""
    assert session.carries(801) == ""


def test_malware_as_a_login_shell_is_stopped(session):
    session.process(602, 500, "/tmp/x", tty=34818)
    assert session.carries(602) == ""


def test_an_upgraded_sshd_still_carries_its_sessions(session):
    session.process(900, 1, "/usr/sbin/sshd (deleted)")
    assert session.carries(900)


@pytest.mark.parametrize(
    "exe",
    ["/usr/sbin/NetworkManager", "/sbin/wpa_supplicant", "/usr/sbin/dhcpcd", "/usr/bin/dbus-daemon", "/sbin/agetty"],
)
def test_what_the_uplink_or_the_system_needs_is_never_stopped(proc, exe):
    assert proc.carries(proc.process(300, 1, exe))


def test_edgeguard_does_not_stop_itself(proc):
    proc.process(300, 1, "/usr/bin/python3.11")
    assert proc.carries(300, cgroup="0::/system.slice/edgeguard.service\n")
    assert proc.carries(300, own=300)
    assert proc.carries(300) == ""


def test_parents_in_a_circle_end(proc):
    proc.process(10, 11, "/usr/bin/a")
    proc.process(11, 10, "/usr/bin/b")
    proc.process(12, 11, "/usr/bin/bash", tty=5)
    assert proc.carries(10) == ""


def test_a_process_that_vanishes_while_we_look_is_not_there(proc):
    (proc.base / "4242").mkdir()
    assert preflight.read_process(str(proc.base), 4242) is None
    assert preflight.read_process(str(proc.base), 4243) is None


TCP = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = (
    "   0: 00000000:{port:04X} 00000000:0000 {state:02X} 00000000:00000000 00:00000000 00000000"
    "     0        0 {inode} 1\n"
)


def test_a_port_that_the_baseline_expects_is_never_blocked(proc):
    assert preflight.port_carries("tcp", 22, frozenset({("tcp", 22)}), str(proc.base))
    assert preflight.port_carries("tcp", 2222, frozenset({("tcp", 22)}), str(proc.base)) == ""


@pytest.mark.parametrize("port", [68, 546])
def test_the_answers_to_dhcp_are_never_blocked(proc, port):
    assert preflight.port_carries("udp", port, NOBODY_EXPECTED, str(proc.base))


def test_the_port_of_an_ssh_session_is_not_blocked_but_a_second_sshd_that_only_listens_is(session):
    session.write("net/tcp", TCP + ROW.format(port=2222, state=0x0A, inode=77))
    session.process(501, 1, "/usr/sbin/sshd", sockets=[77])
    assert preflight.port_carries("tcp", 2222, NOBODY_EXPECTED, str(session.base)) == ""
    session.write("net/tcp6", TCP + ROW.format(port=2222, state=1, inode=78))
    session.process(502, 501, "/usr/sbin/sshd", sockets=[78])
    assert "SSH" in preflight.port_carries("tcp", 2222, NOBODY_EXPECTED, str(session.base))


def test_the_port_of_a_vpn_program_is_not_blocked_and_that_of_malware_is(proc):
    proc.write("net/udp", TCP + ROW.format(port=1194, state=7, inode=5) + ROW.format(port=4444, state=7, inode=6))
    proc.process(40, 1, "/usr/sbin/openvpn", sockets=[5])
    proc.process(41, 1, "/tmp/openvpn", sockets=[6])
    assert "uplink" in preflight.port_carries("udp", 1194, NOBODY_EXPECTED, str(proc.base))
    assert preflight.port_carries("udp", 4444, NOBODY_EXPECTED, str(proc.base)) == ""


class Sys:
    """A /sys with one USB device, 1-1.2, and things that may hang below it."""

    def __init__(self, base):
        self.base = base / "sys"
        self.device = self.base / "devices/pci0/usb1/1-1/1-1.2"
        self.other = self.base / "devices/platform/soc"
        for directory in (self.device, self.other, self.base / "class/net", self.base / "class/tty"):
            directory.mkdir(parents=True)
        (self.base / "class/input").mkdir()
        (self.base / "dev/block").mkdir(parents=True)

    def link(self, name, target):
        target.mkdir(parents=True, exist_ok=True)
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, path)
        return target

    def keyboard(self, name, below):
        home = self.link(f"class/input/{name}", below / "input" / name)
        (home / "capabilities").mkdir()
        (home / "capabilities/ev").write_text("120013\n")


@pytest.fixture
def sysfs(tmp_path):
    return Sys(tmp_path)


def _usb(sysfs, proc):
    return preflight.usb_carries(str(sysfs.device), str(sysfs.base), str(proc.base))


def test_a_plain_usb_stick_may_be_switched_off(sysfs, proc):
    sysfs.link("dev/block/8:1", sysfs.device / "host0/block/sda/sda1")
    proc.write("self/mountinfo", "40 1 8:1 / /media/stick rw - vfat /dev/none rw\n")
    assert _usb(sysfs, proc) == ""


@pytest.mark.parametrize("mount", ["/", "/boot/firmware"])
def test_the_disk_that_the_system_runs_from_stays(sysfs, proc, mount):
    sysfs.link("dev/block/8:1", sysfs.device / "host0/block/sda/sda1")
    proc.write("self/mountinfo", f"22 1 8:1 / {mount} rw - ext4 /dev/none rw\n")
    assert "runs from it" in _usb(sysfs, proc)


def test_the_disk_below_an_encrypted_root_stays(sysfs, proc):
    sysfs.link("dev/block/254:0", sysfs.other / "block/dm-0")
    part = sysfs.device / "host0/block/sda/sda2"
    part.mkdir(parents=True)
    (sysfs.other / "block/dm-0/slaves").mkdir()
    os.symlink(part, sysfs.other / "block/dm-0/slaves/sda2")
    proc.write("self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/none rw\n")
    assert "runs from it" in _usb(sysfs, proc)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("net/route", "Iface\tDestination\nusb0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"),
        ("net/ipv6_route", "0" * 32 + " 00 " + "0" * 32 + " 00 fe800000 00000064 1 0 00000003 usb0\n"),
    ],
)
def test_the_modem_with_the_default_route_stays(sysfs, proc, name, text):
    sysfs.link("class/net/usb0/device", sysfs.device / "1-1.2:1.0")
    assert _usb(sysfs, proc) == ""
    proc.write(name, text)
    assert "uplink" in _usb(sysfs, proc)


def test_a_serial_adapter_with_a_session_stays(sysfs, proc):
    sysfs.link("class/tty/ttyUSB0/device", sysfs.device / "ttyUSB0")
    (sysfs.base / "class/tty/ttyUSB0/dev").write_text("188:0\n")
    assert _usb(sysfs, proc) == ""
    proc.process(50, 1, "/usr/bin/bash", tty=188 << 8)
    assert "terminal" in _usb(sysfs, proc)


def test_the_only_keyboard_stays_while_somebody_is_logged_in_at_the_device(sysfs, proc):
    sysfs.keyboard("input3", sysfs.device)
    assert _usb(sysfs, proc) == "", "nobody is logged in"
    proc.process(50, 1, "/usr/bin/bash", tty=(4 << 8) | 1)
    assert "keyboard" in _usb(sysfs, proc)
    sysfs.keyboard("input4", sysfs.other)
    assert _usb(sysfs, proc) == "", "there is another one"


def test_nothing_is_done_while_dpkg_holds_its_lock(tmp_path, proc):
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    lock = tmp_path / "var/lib/dpkg/lock-frontend"
    lock.write_text("")
    proc.write("locks", "1: POSIX  ADVISORY  WRITE 9 00:10:1 0 EOF\n1: -> POSIX  ADVISORY WRITE 9 00:10:1 0 EOF\n")
    assert preflight.dpkg_running(str(proc.base), str(tmp_path)) == ""
    status = lock.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    proc.write("locks", f"1: POSIX  ADVISORY  WRITE 9 {device}:{status.st_ino} 0 EOF\n")
    assert "dpkg" in preflight.dpkg_running(str(proc.base), str(tmp_path))


def test_a_lock_on_another_file_of_the_same_number_is_not_dpkgs(tmp_path, proc):
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    lock = tmp_path / "var/lib/dpkg/lock"
    lock.write_text("")
    proc.write("locks", f"1: FLOCK  ADVISORY  WRITE 9 ee:07:{lock.stat().st_ino} 0 EOF\n")
    assert preflight.dpkg_running(str(proc.base), str(tmp_path)) == ""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        assert preflight.dpkg_running(str(proc.base), str(tmp_path)), "where /proc/locks names another device"
        other.communicate(b"\n")
    assert preflight.dpkg_running(str(proc.base), str(tmp_path)) == ""


def test_a_real_lock_is_seen_in_the_real_proc(tmp_path):
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    with open(tmp_path / "var/lib/dpkg/lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert preflight.dpkg_running("/proc", str(tmp_path))
    assert not preflight.dpkg_running("/proc", str(tmp_path))
