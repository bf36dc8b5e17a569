"""Sensor `usb`: the devices on the USB buses, hubs and root hubs included.

One plug gives `add` and `bind` (one pull `unbind` and `remove`), and udev sends each a second time under its own
name: events only say where to look, and a device is told once as long as it says the same about itself.
Two devices that claim the same identity at the same time get the port into the subject, so that a copied serial
number does not hide behind the real device.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from edgeguard.model import Columns, Observation, Origin, Status
from edgeguard.sensors import Column, Context, Rung, parse_usb, reading

DEVICES = "/sys/bus/usb/devices"
DEVICES_MAX = 1024  # subjects; 127 addresses on each of 8 buses
UNSEEN = "/sys is not mounted or is hidden from us"
PROOF_S = 0.3  # seconds to wait for our own event; udev needs a few milliseconds
RECEIVE_BUFFER = 256 * 1024  # bytes; the kernel's default loses events while a full hub is plugged in

_KIND: Mapping[str, Column] = {
    "vendor": Column("str", "vendor id, four hex digits"),
    "product": Column("str", "product id, four hex digits"),
    "serial": Column("str", "serial number as the device claims it"),
    "manufacturer": Column("str", "manufacturer as the device claims it"),
    "name": Column("str", "product name as the device claims it"),
    "interfaces": Column("list", "class, subclass and protocol of every interface, hex, sorted", reference=True),
    "port": Column("str", "where it is plugged in, e.g. 1-1.2"),
    "authorized": Column("bool", "the kernel may use it"),
    "driver": Column("str", "kernel drivers that serve its interfaces, joined with commas"),
}


class Usb:
    name = "usb"
    kinds: Mapping[str, Mapping[str, Column]] = {"usb": _KIND}
    ladder = ("udev", "kernel", "polling")
    triggers: tuple[str, ...] = ()
    volatile = frozenset({"driver"})

    def __init__(self, context: Context) -> None:
        self.interval_s = 15
        self._root = context.root
        self._devices = reading.under(context.root, DEVICES)
        self._monitor: Any = None
        self._told: dict[str, tuple[str, Columns]] = {}  # port -> subject and columns last told
        self._early: list[str] = []  # ports of events that came during the self-test

    def start(self) -> Rung:
        """udev's own events, else the kernel's, else looking every few seconds."""
        if not os.path.isdir(self._devices):
            self.interval_s = 300  # a bus can still appear with its driver
            if self._root == "/" and not _buses():
                hidden = (("udev", UNSEEN), ("kernel", UNSEEN))
                return Rung("polling", proven=False, blind=("USB devices are not seen",), tried=hidden)
            nothing = f"no USB here: {DEVICES} does not exist"
            return Rung("polling", proven=True, tried=(("udev", nothing), ("kernel", nothing)))
        tried: list[tuple[str, str]] = []
        for source in ("udev", "kernel"):
            try:
                self._monitor = self._open(source)
            except (OSError, ImportError) as error:
                tried.append((source, str(error)))
                continue
            self.interval_s = 3600
            return Rung(source, proven=self._prove(), tried=tuple(tried))
        self.interval_s = 15
        blind = (f"a USB device that is plugged in for less than {self.interval_s} s may go unseen",)
        return Rung("polling", proven=True, blind=blind, tried=tuple(tried))

    def fileno(self) -> int | None:
        return self._monitor.fileno() if self._monitor is not None else None

    def ready(self, now: int) -> Iterator[Observation]:
        """Look again at every port that an event named."""
        if self._monitor is None:
            return
        ports, lost = self._drain()
        if lost:
            yield from self._look(self._ports() | self._told.keys(), now, Origin.SWEEP, repeat=False)
        else:
            yield from self._look(ports, now, Origin.LIVE, repeat=False)

    def observe(self, now: int) -> Iterable[Observation]:
        present = self._ports()
        for port in self._told.keys() - present:
            del self._told[port]
        return list(self._look(present, now, Origin.SWEEP, repeat=True))

    def close(self) -> None:
        self._monitor = None  # pyudev closes the socket with the object
        self._told.clear()

    def _open(self, source: str) -> Any:
        """A monitor of USB devices (not interfaces), filtered in the kernel."""
        if self._root != "/":
            raise OSError(errno.ENOTSUP, "not this machine's root directory")
        if source == "udev" and not os.path.exists("/run/udev/control"):
            raise OSError(errno.ENOENT, "udev is not running")
        pyudev = _pyudev()
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
        monitor.filter_by("usb", "usb_device")
        with suppress(OSError):  # without CAP_NET_ADMIN the default stays; an overflow makes us look at everything
            monitor.set_receive_buffer_size(RECEIVE_BUFFER)
        monitor.start()
        return monitor

    def _prove(self) -> bool:
        """Ask the kernel to repeat the event of one device (needs root) and see it arrive."""
        for port in sorted(self._ports(), key=parse_usb.port_order):
            try:
                fd = os.open(f"{self._devices}/{port}/uevent", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(fd, b"change")
            except OSError:
                continue
            finally:
                os.close(fd)
            return self._arrives(port)
        return False

    def _arrives(self, port: str) -> bool:
        end = time.monotonic() + PROOF_S
        while (left := end - time.monotonic()) > 0:
            device = self._monitor.poll(timeout=left)
            if device is not None:
                self._early.append(device.sys_name)
                if device.sys_name == port:
                    return True
        return False

    def _drain(self) -> tuple[set[str], bool]:
        """Ports that events named, and whether the kernel dropped some (ENOBUFS)."""
        ports, self._early = set(self._early), []
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                ports.add(device.sys_name)
        except OSError:
            return ports, True
        return {port for port in ports if parse_usb.is_device(port)}, False

    def _ports(self) -> set[str]:
        try:
            names = os.listdir(self._devices)
        except OSError:
            return set()
        return {name for name in names[: DEVICES_MAX * 16] if parse_usb.is_device(name)}

    def _look(self, ports: Iterable[str], now: int, origin: Origin, *, repeat: bool) -> Iterator[Observation]:
        # Who was known first keeps the plain subject; among new ones the port decides, so it is the same at each start.
        for port in sorted(ports, key=lambda port: (port not in self._told, parse_usb.port_order(port)))[:DEVICES_MAX]:
            columns = self._columns(port)
            before = self._told.get(port)
            if columns is None:
                if before is not None:
                    del self._told[port]
                    if not any(subject == before[0] for subject, _ in self._told.values()):
                        yield Observation("usb", before[0], before[1], now, Status.ABSENT, origin)
                continue
            subject = self._subject(port, columns)
            if before is not None and before[0] != subject:  # pulled and another one plugged in between two looks
                yield Observation("usb", before[0], before[1], now, Status.ABSENT, origin)
            self._told[port] = (subject, columns)
            if repeat or before is None or before[0] != subject or _identity(before[1]) != _identity(columns):
                yield Observation("usb", subject, columns, now, Status.PRESENT, origin)

    def _subject(self, port: str, columns: Columns) -> str:
        plain = parse_usb.subject(*(str(columns[name]) for name in ("vendor", "product", "serial", "port")))
        taken = any(subject == plain for other, (subject, _) in self._told.items() if other != port)
        return f"{plain}@{port}" if taken else plain

    def _columns(self, port: str) -> Columns | None:
        """All columns of one device; None when it is gone (files vanish one by one while it is pulled)."""
        place = f"{self._devices}/{port}"
        vendor, product = _text(place, "idVendor"), _text(place, "idProduct")
        if not vendor or not product:
            return None
        return {
            "vendor": parse_usb.hex4(vendor),
            "product": parse_usb.hex4(product),
            "serial": _text(place, "serial"),
            "manufacturer": _text(place, "manufacturer"),
            "name": _text(place, "product"),
            "interfaces": _interfaces(place, port),
            "port": port,
            "authorized": _text(place, "authorized") != "0",
            "driver": _drivers(place, port),
        }


def _identity(columns: Columns) -> dict[str, object]:
    """What makes a device tell again: not the drivers, which come one by one in the second after the plug."""
    return {name: value for name, value in columns.items() if name != "driver"}


def _text(place: str, name: str) -> str:
    try:
        data = reading.read(f"{place}/{name}", 4096)  # one page, as sysfs gives
    except OSError:
        return ""
    return os.fsdecode(data.removesuffix(b"\n")[: parse_usb.STRING_MAX])


def _interfaces(place: str, port: str) -> tuple[str, ...]:
    try:
        return parse_usb.interfaces_of(reading.read(f"{place}/descriptors", parse_usb.DESCRIPTORS_MAX))
    except OSError:
        pass  # no descriptors file: a test tree or an image; the directories say nearly the same
    names = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
    return tuple(sorted("".join(_text(entry, name) for name in names) for entry in _functions(place, port)))


def _drivers(place: str, port: str) -> str:
    found = set()
    for entry in _functions(place, port):
        try:
            found.add(os.path.basename(os.readlink(f"{entry}/driver")))
        except OSError:
            continue  # no driver has taken this interface
    return ",".join(sorted(found))


def _functions(place: str, port: str) -> list[str]:
    """The interface directories of a device: 1-1.2:1.0 in 1-1.2; those of root hub usb1 are called 1-0:1.0."""
    start = f"{port.removeprefix('usb')}-0:" if port.startswith("usb") else f"{port}:"
    try:
        return sorted(f"{place}/{name}" for name in os.listdir(place) if name.startswith(start))
    except OSError:
        return []


def _buses() -> list[str]:
    """The kinds of buses of this machine; each kernel has some, so none means that sysfs is not to be seen."""
    try:
        return os.listdir("/sys/bus")
    except OSError:
        return []


def _pyudev() -> Any:
    """The library, loaded where there is USB, without what it uses to look for libudev and libc.

    `ctypes.util` searches by running ldconfig, for which it loads subprocess, tempfile and shutil: 0.9 MB that stay,
    and a child process out of the resident daemon. Both names are part of the libraries' ABI and need no search.
    """
    search = ModuleType("ctypes.util")
    search.find_library = {"udev": "libudev.so.1", "c": "libc.so.6"}.get  # type: ignore[attr-defined]  # a module made here
    standing = sys.modules.get("ctypes.util")
    sys.modules["ctypes.util"] = standing or search
    try:
        import pyudev
    finally:
        if standing is None:
            del sys.modules["ctypes.util"]
    return pyudev
