"""How busy the device is: numbers from small files of /proc and /sys. What is not there, or not as expected, is None.

Sources: proc(5) loadavg, meminfo, net/dev, net/snmp; thermal zones by the kernel's Documentation/driver-api/thermal.
"""

from __future__ import annotations

import os

READ_MAX = 65_536  # bytes of one file; net/dev with 500 interfaces is as long
_LOOPBACK = b"lo"


def look(root: str) -> dict[str, int | None]:
    """By names of registry.METRIC. `root` is "" for this device."""
    received, sent = network_bytes(_read(f"{root}/proc/net/dev"))
    return {
        "received_bytes": received,
        "sent_bytes": sent,
        "processes": _processes(f"{root}/proc"),
        "established": established(_read(f"{root}/proc/net/snmp")),
        "memory_free_kib": memory_available_kib(_read(f"{root}/proc/meminfo")),
        "temperature_mc": temperature_mc(_read(f"{root}/sys/class/thermal/thermal_zone0/temp")),
        "load_permille": load_permille(_read(f"{root}/proc/loadavg")),
    }


def load_permille(loadavg: bytes) -> int | None:
    """Mean of runnable tasks over the last minute, in thousandths."""
    whole, _, part = loadavg.partition(b" ")[0].partition(b".")
    number = _number(whole)
    return None if number is None else number * 1000 + (_number(part.ljust(3, b"0")[:3]) or 0)


def memory_available_kib(meminfo: bytes) -> int | None:
    """What programs could still take without swapping."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(b":")
        if name == b"MemAvailable":
            return _number(rest.removesuffix(b"kB").strip())
    return None


def network_bytes(net_dev: bytes) -> tuple[int | None, int | None]:
    """(received, sent) by all interfaces but the loopback, since they came up."""
    lines = net_dev.splitlines()[2:]
    if not lines:
        return None, None
    received = sent = 0
    for line in lines:
        name, _, rest = line.rpartition(b":")
        columns = rest.split()
        if name.strip() != _LOOPBACK and len(columns) >= 9:
            received += _number(columns[0]) or 0
            sent += _number(columns[8]) or 0
    return received, sent


def established(net_snmp: bytes) -> int | None:
    """TCP connections that stand, IPv6 included."""
    names: list[bytes] = []
    for line in net_snmp.splitlines():
        words = line.split()
        if words[:1] == [b"Tcp:"]:
            if names:
                return _number(dict(zip(names, words, strict=False)).get(b"CurrEstab", b""))
            names = words
    return None


def temperature_mc(temp: bytes) -> int | None:
    """Of the first thermal zone, in thousandths of a degree Celsius; on a Raspberry Pi the processor."""
    text = temp.strip()
    number = _number(text.removeprefix(b"-"))
    return None if number is None else -number if text.startswith(b"-") else number


def disk_free_kib(path: str) -> int | None:
    """What is left to an ordinary user on the file system of `path`."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize // 1024


def _processes(proc: str) -> int | None:
    try:
        return sum(name.isdigit() for name in os.listdir(proc))
    except OSError:
        return None


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, READ_MAX)
    except OSError:  # a thermal zone that is asleep answers EAGAIN or EINVAL
        return b""
    finally:
        os.close(fd)


def _number(word: bytes) -> int | None:
    """Digits only, and no more than a counter of 64 bits has."""
    return int(word) if word.isdigit() and len(word) < 20 else None
