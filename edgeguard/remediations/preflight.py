"""Never lock out: what must not be stopped, blocked or unplugged, because a person or the uplink depends on it.

Every function answers with a reason in plain words, or "" where nothing speaks against acting. All of them look at
/proc and /sys of the given world, so a test has a tree of its own. Names count only together with their place:
`/usr/sbin/sshd` is sshd, `/tmp/sshd` is not. A deleted `/usr/sbin/sshd` is sshd too: it carries the sessions that
stood when its package was upgraded.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

_FLOCK = Struct("hhqqi4x")  # struct flock in fcntl(2), offsets of 64 bits: type, whence, start, length, pid
PARENTS_MAX = 64  # processes on the way to init; more is a loop made by pids that are used again
PROCESSES_MAX = 100_000  # looked at; pid_max is 4,194,304 but such a device has other worries

SYSTEM_PLACES = ("/usr/bin/", "/usr/sbin/", "/usr/lib/", "/usr/libexec/", "/bin/", "/sbin/", "/lib/", "/usr/lib64/")
GUARD = ("edgeguardd", "edgeguard-act", "edgeguard-seal", "edgeguard-uplink")
LOGIN = frozenset(
    (
        "sshd",
        "sshd-session",
        "sshd-auth",
        "dropbear",
        "login",
        "agetty",
        "getty",
        "su",
        "sudo",
        "sudo-rs",
        "doas",
        "tmux",
        "screen",
        "mosh-server",
        "gdm-session-worker",
        "lightdm",
        "sddm-helper",
        "greetd",
        "conmon",
    )
)
VITAL = frozenset(
    ("systemd", "init", "systemd-logind", "systemd-udevd", "dbus-daemon", "dbus-broker", "dbus-broker-launch")
)
UPLINK = frozenset(
    (
        "NetworkManager",
        "wpa_supplicant",
        "iwd",
        "systemd-networkd",
        "systemd-resolved",
        "dhclient",
        "dhcpcd",
        "udhcpc",
        "connmand",
        "ModemManager",
        "pppd",
        "openvpn",
        "tailscaled",
        "hostapd",
        "ofonod",
        "qmi-proxy",
        "mbim-proxy",
        "cloudflared",
        "charon",
    )
)
DHCP = {("udp", 68), ("udp", 546)}  # the answers to a DHCP client: without them the lease, and the uplink, ends
EVENT_KEY = 1 << 0x01  # linux/input-event-codes.h EV_KEY
EVENT_REPEAT = 1 << 0x14  # EV_REP: keys that repeat make a keyboard; buttons do not
ESTABLISHED = 1  # include/net/tcp_states.h TCP_ESTABLISHED
VITAL_MOUNTS = ("/", "/usr", "/boot", "/boot/firmware", "/var", "/home")
CONSOLES = 4  # major number of tty1..tty63: a session at the device itself


class Process(NamedTuple):
    pid: int
    parent: int
    session: int
    tty: int  # device number of the controlling terminal, 0 for none
    start: int  # clock ticks since boot
    exe: str  # "" where there is none (kernel thread) or it cannot be read


def dpkg_running(proc: str, root: str = "/") -> str:
    """Is a package being installed? dpkg and apt hold a lock on one of these files as long as they work."""
    places = {}
    for name in ("lock-frontend", "lock"):
        path = os.path.join(root, "var/lib/dpkg", name)
        try:
            status = os.stat(path)
        except OSError:
            continue  # no dpkg here: nothing to wait for
        places[status.st_ino] = (path, f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}")
    asked = set()
    for line in _read(os.path.join(proc, "locks")).splitlines():
        words = line.split()  # "1: POSIX  ADVISORY  WRITE 2211 fe:00:1234 0 EOF"
        device, _, inode = words[5].rpartition(":") if len(words) > 5 and words[1] != "->" else ("", "", "")
        path, own = places.get(int(inode) if inode.isdigit() else -1, ("", ""))
        # Anybody can make a file of the same inode number elsewhere. On btrfs and overlayfs the device is another than
        # stat's, so the kernel is asked there; that cannot see a lock of our own process.
        if path and (device == own or (path not in asked and _locked(path))):
            return "a package is being installed (dpkg holds its lock)"
        asked.add(path)
    return ""


def _locked(path: str) -> bool:
    """Does another process hold a POSIX lock on it?"""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, wanted))[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(fd)


def processes(proc: str) -> dict[int, Process]:
    """Every process that could be read."""
    found = {}
    for pid in _pids(proc):
        process = read_process(proc, pid)
        if process is not None:
            found[pid] = process
    return found


def read_process(proc: str, pid: int) -> Process | None:
    """One process, None if it is gone."""
    text = _read(f"{proc}/{pid}/stat")
    # the name, in brackets, may hold anything, brackets and newlines too: fields count from the last bracket
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20:
        return None
    try:
        exe = os.readlink(f"{proc}/{pid}/exe")
    except OSError:
        exe = ""
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[4]), int(fields[19]), exe)


def process_carries(pid: int, table: dict[int, Process], own: int, cgroup: str = "") -> str:
    """Why this process must not be stopped, "" if it may."""
    process = table.get(pid)
    if process is None:
        return ""
    if pid == 1 or not process.exe:
        return "it is init or a kernel thread"
    if pid == own or pid in _ancestors(own, table) or _is_guard(process.exe, cgroup):
        return "it is a part of EdgeGuard"
    name = system_name(process.exe)
    if name in LOGIN:
        return "it carries logins"
    if name in VITAL:
        return "the system needs it"
    if name in UPLINK:
        return "it carries the uplink"
    for leader in _login_shells(table):
        if pid == leader or pid in _ancestors(leader, table):
            return "it carries a terminal or SSH session"
    return ""


def system_name(exe: str) -> str:
    """The name of a program that lies where only packages put programs, "" for one elsewhere."""
    exe = exe.removesuffix(" (deleted)")
    return exe.rpartition("/")[2] if exe.startswith(SYSTEM_PLACES) else ""


def _is_guard(exe: str, cgroup: str) -> bool:
    leaf = cgroup.strip().rpartition("/")[2]
    return leaf.startswith("edgeguard") or system_name(exe) in GUARD


def _login_shells(table: dict[int, Process]) -> list[int]:
    """Session leaders with a terminal that a login program started.

    Only those: malware that opens a terminal for a shell of its own has no login program as its parent.
    A leader outside the places of packages is no shell: `ssh -t device /tmp/x` protects nothing.
    """
    shells = []
    for process in table.values():
        parent = table.get(process.parent)
        if process.tty and process.session == process.pid and parent is not None:
            name = parent.exe and system_name(parent.exe)
            started_by_login = name in LOGIN or name in ("tmux: server", "systemd")
            if started_by_login and system_name(process.exe):
                shells.append(process.pid)
    return shells


def _ancestors(pid: int, table: dict[int, Process]) -> set[int]:
    found: set[int] = set()
    process = table.get(pid)
    while process is not None and process.parent > 0 and len(found) < PARENTS_MAX:
        if process.parent in found:
            break
        found.add(process.parent)
        process = table.get(process.parent)
    return found


def port_carries(protocol: str, port: int, expected: frozenset[tuple[str, int]], proc: str) -> str:
    """Why this port must not be blocked, "" if it may."""
    if (protocol, port) in expected:
        return "the baseline expects a listener on this port"
    if (protocol, port) in DHCP:
        return "the uplink needs it (DHCP)"
    inodes = dict(_sockets(proc, protocol, port))
    if not inodes:
        return ""
    for name, inode in _owners(proc, set(inodes)):
        if name in UPLINK:
            return "it belongs to a program that carries the uplink"
        if name in LOGIN and inodes[inode] == ESTABLISHED:
            return "it carries an SSH session"
    return ""


def _sockets(proc: str, protocol: str, port: int) -> Iterator[tuple[int, int]]:
    """(inode, state) of every socket on a local port."""
    for family in ("", "6"):
        for line in _read(f"{proc}/net/{protocol}{family}").splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and int(words[1].rpartition(":")[2], 16) == port:
                yield int(words[9]), int(words[3], 16)


def _owners(proc: str, inodes: set[int]) -> Iterator[tuple[str, int]]:
    """(program name, inode) for each process that holds one of the sockets. Looks only at programs that matter."""
    for pid in _pids(proc):
        try:
            name = system_name(os.readlink(f"{proc}/{pid}/exe"))
            if name not in LOGIN and name not in UPLINK:
                continue
            links = [os.readlink(f"{proc}/{pid}/fd/{fd}") for fd in os.listdir(f"{proc}/{pid}/fd")]
        except OSError:
            continue  # it ended between two calls
        for link in links:
            if link.startswith("socket:[") and int(link[8:-1]) in inodes:
                yield name, int(link[8:-1])


def usb_carries(device: str, sys: str, proc: str) -> str:
    """Why a USB device (its real directory in /sys) must not be switched off, "" if it may."""
    if _backs(device, sys, proc):
        return "the system runs from it"
    for interface in _default_interfaces(proc):
        if _below(f"{sys}/class/net/{interface}/device", device):
            return f"the uplink runs over it ({interface})"
    ttys = _ttys(sys, device)
    table = processes(proc)
    sessions = {process.tty for process in table.values() if process.tty}
    if ttys & sessions:
        return "a terminal session runs over it"
    if _only_keyboard(sys, device) and any(number >> 8 == CONSOLES for number in sessions):
        return "it is the only keyboard, and somebody is logged in at the device"
    return ""


def _backs(device: str, sys: str, proc: str) -> bool:
    """Does a file system that the system needs lie on it, directly or through device mapper, RAID or loop?"""
    numbers = set()
    for line in _read(f"{proc}/self/mountinfo").splitlines():
        words = line.split()
        if len(words) > 4 and words[4] in VITAL_MOUNTS:
            numbers.add(words[2])
            numbers.add(_number_of(words[words.index("-") + 2]))  # btrfs shows a device number of its own making
    return any(_block_below(f"{sys}/dev/block/{number}", device, 0) for number in numbers)


def _number_of(source: str) -> str:
    try:
        status = os.stat(source)
    except OSError:
        return "none"
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _block_below(block: str, device: str, depth: int) -> bool:
    if _below(block, device):
        return True
    slaves = os.path.join(block, "slaves")
    if depth > 8 or not os.path.isdir(slaves):
        return False
    return any(_block_below(os.path.join(slaves, name), device, depth + 1) for name in os.listdir(slaves))


def _default_interfaces(proc: str) -> set[str]:
    """Interfaces that hold a default route, IPv4 or IPv6."""
    found = set()
    for line in _read(f"{proc}/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == "00000000" and words[7] == "00000000":
            found.add(words[0])
    for line in _read(f"{proc}/net/ipv6_route").splitlines():
        words = line.split()
        if len(words) > 9 and words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
            found.add(words[9])
    return found


def _ttys(sys: str, device: str) -> set[int]:
    """Device numbers of the serial terminals on a device, as /proc/PID/stat gives them."""
    numbers = set()
    base = f"{sys}/class/tty"
    for name in os.listdir(base) if os.path.isdir(base) else ():
        if _below(f"{base}/{name}/device", device):
            major, _, minor = _read(f"{base}/{name}/dev").strip().partition(":")
            if major.isdigit() and minor.isdigit():
                low, high = int(minor) & 0xFF, int(minor) >> 8
                numbers.add(high << 20 | int(major) << 8 | low)  # new_encode_dev in linux/kdev_t.h
    return numbers


def _only_keyboard(sys: str, device: str) -> bool:
    keyboards = list(_keyboards(sys))
    here = [path for path in keyboards if _below(path, device)]
    return bool(here) and len(here) == len(keyboards)


def _keyboards(sys: str) -> Iterator[str]:
    base = f"{sys}/class/input"
    for name in os.listdir(base) if os.path.isdir(base) else ():
        text = _read(f"{base}/{name}/capabilities/ev").strip()
        events = int(text, 16) if name.startswith("input") and text else 0
        if events & EVENT_KEY and events & EVENT_REPEAT:
            yield f"{base}/{name}"


def _below(path: str, device: str) -> bool:
    if not os.path.lexists(path):
        return False
    real = os.path.realpath(path)
    return real == device or real.startswith(device + "/")


def _pids(proc: str) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()][:PROCESSES_MAX]


def _read(path: str) -> str:
    """A file of /proc or /sys as text, "" where it is not there or vanished meanwhile."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
