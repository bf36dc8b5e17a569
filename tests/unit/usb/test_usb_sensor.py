"""Sensor `usb` on made-up sysfs trees: identity, hostile descriptors, plug and pull, clones."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.model import Origin, Status
from edgeguard.sensors import Context, parse_usb
from edgeguard.sensors import usb as module
from edgeguard.sensors.usb import Usb


def interface(number: int, triple: str, alternate: int = 0) -> bytes:
    return bytes([9, 4, number, alternate, 1]) + bytes.fromhex(triple) + b"\0"


def descriptors(*interfaces: bytes) -> bytes:
    device = bytes([18, 1]) + bytes(16)
    return device + bytes([9, 2]) + struct.pack("<H", 9) + bytes(5) + b"".join(interfaces)


class Tree:
    """A /sys/bus/usb/devices below a temporary root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "sys/bus/usb/devices"
        self.devices.mkdir(parents=True)

    def plug(
        self, port: str, vendor: str = "046d", product: str = "c31c", data: bytes | None = None, **files: bytes
    ) -> None:
        place = self.devices / port
        place.mkdir()
        content = {"idVendor": vendor.encode(), "idProduct": product.encode(), "authorized": b"1", **files}
        for name, text in content.items():
            (place / name).write_bytes(text + b"\n")
        (place / "descriptors").write_bytes(descriptors(interface(0, "030101")) if data is None else data)

    def pull(self, port: str) -> None:
        for file in (self.devices / port).iterdir():
            file.unlink()
        (self.devices / port).rmdir()

    def sensor(self) -> Usb:
        sensor = Usb(Context(root=str(self.root)))
        sensor.start()
        return sensor


class Device:
    def __init__(self, sys_name: str) -> None:
        self.sys_name = sys_name


class Monitor:
    """Gives what a test puts in, as pyudev's monitor does."""

    def __init__(self) -> None:
        self.events: list[str | OSError] = []

    def fileno(self) -> int:
        return 99

    def poll(self, timeout: float) -> Device | None:
        if not self.events:
            return None
        event = self.events.pop(0)
        if isinstance(event, OSError):
            raise event
        return Device(event)


class Eventful(Usb):
    def _open(self, source: str) -> Monitor:
        return Monitor()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def eventful(tree: Tree) -> tuple[Eventful, Monitor]:
    sensor = Eventful(Context(root=str(tree.root)))
    sensor.start()
    return sensor, sensor._monitor


def subjects(sensor: Usb) -> list[str]:
    return [observation.subject for observation in sensor.observe(1)]


def test_no_usb_is_said_and_is_not_blind(tmp_path: Path) -> None:
    sensor = Usb(Context(root=str(tmp_path)))
    rung = sensor.start()
    assert rung.proven
    assert rung.blind == ()
    assert "no USB here" in rung.tried[0][1]
    assert list(sensor.observe(1)) == []


def test_a_hidden_sysfs_is_not_a_machine_without_usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = Usb(Context())
    sensor._devices = str(tmp_path / "none")
    monkeypatch.setattr(module, "_buses", list)
    rung = sensor.start()
    assert (rung.name, rung.proven, rung.blind) == ("polling", False, ("USB devices are not seen",))
    monkeypatch.setattr(module, "_buses", lambda: ["cpu"])
    assert sensor.start().proven


def test_columns(tree: Tree) -> None:
    tree.plug("1-1.2", serial=b"A1", manufacturer=b"Logitech", product_=b"")
    (tree.devices / "1-1.2" / "product").write_bytes(b"Keyboard\n")
    (tree.devices / "1-1.2" / "1-1.2:1.0").mkdir()
    os.symlink("../../drivers/usbhid", tree.devices / "1-1.2" / "1-1.2:1.0" / "driver")
    [seen] = tree.sensor().observe(7)
    assert seen.subject == "046d:c31c/A1"
    assert seen.at == 7
    assert seen.columns == {
        "vendor": "046d",
        "product": "c31c",
        "serial": "A1",
        "manufacturer": "Logitech",
        "name": "Keyboard",
        "interfaces": ("030101",),
        "port": "1-1.2",
        "authorized": True,
        "driver": "usbhid",
    }


def test_without_serial_another_port_is_another_subject(tree: Tree) -> None:
    tree.plug("1-1")
    sensor = tree.sensor()
    assert subjects(sensor) == ["046d:c31c@1-1"]
    tree.pull("1-1")
    tree.plug("1-2")
    assert subjects(sensor) == ["046d:c31c@1-2"]


def test_a_copied_identity_does_not_hide_behind_the_first(tree: Tree) -> None:
    tree.plug("1-2", serial=b"A1")
    sensor = tree.sensor()
    assert subjects(sensor) == ["046d:c31c/A1"]
    tree.plug("1-1", serial=b"A1")  # sorts before the first, and yet is the copy
    assert subjects(sensor) == ["046d:c31c/A1", "046d:c31c/A1@1-1"]
    assert {each.columns["port"]: each.subject for each in sensor.observe(1)} == {
        "1-2": "046d:c31c/A1",
        "1-1": "046d:c31c/A1@1-1",
    }


def test_hostile_strings_survive_and_are_bounded(tree: Tree) -> None:
    tree.plug("1-1", serial=b"\x1b[2J\xff/../\n" + b"x" * 3000)
    [seen] = tree.sensor().observe(1)
    serial = seen.columns["serial"]
    assert isinstance(serial, str)
    assert os.fsencode(serial).startswith(b"\x1b[2J\xff/../\n")
    assert len(os.fsencode(serial)) == parse_usb.STRING_MAX


def test_one_plug_with_many_events_is_told_once(tree: Tree) -> None:
    sensor, monitor = eventful(tree)
    tree.plug("1-1", serial=b"A1")
    monitor.events = ["1-1", "1-1", "1-1"]  # add, bind, change
    told = list(sensor.ready(5))
    assert [(each.subject, each.status, each.origin) for each in told] == [
        ("046d:c31c/A1", Status.PRESENT, Origin.LIVE)
    ]
    monitor.events = ["1-1"]
    assert list(sensor.ready(6)) == []
    tree.pull("1-1")
    monitor.events = ["1-1", "1-1"]  # unbind, remove
    assert [each.status for each in sensor.ready(7)] == [Status.ABSENT]
    assert list(sensor.ready(8)) == []


def test_another_function_is_told(tree: Tree) -> None:
    sensor, monitor = eventful(tree)
    tree.plug("1-1", serial=b"A1")
    list(sensor.observe(1))
    (tree.devices / "1-1/descriptors").write_bytes(descriptors(interface(0, "080650"), interface(1, "030101")))
    monitor.events = ["1-1"]
    [seen] = sensor.ready(2)
    assert seen.columns["interfaces"] == ("030101", "080650")


def test_swapped_between_two_looks(tree: Tree) -> None:
    sensor, monitor = eventful(tree)
    tree.plug("1-1", serial=b"A1")
    list(sensor.observe(1))
    tree.pull("1-1")
    tree.plug("1-1", serial=b"B2")
    monitor.events = ["1-1"]
    assert [(each.subject[-2:], each.status) for each in sensor.ready(2)] == [
        ("A1", Status.ABSENT),
        ("B2", Status.PRESENT),
    ]


def test_lost_events_make_it_look_at_everything(tree: Tree) -> None:
    sensor, monitor = eventful(tree)
    tree.plug("1-1", serial=b"A1")
    monitor.events = [OSError(105, "No buffer space available")]
    assert [each.origin for each in sensor.ready(2)] == [Origin.SWEEP]


def test_interface_directories_and_nonsense_are_no_devices(tree: Tree) -> None:
    tree.plug("usb1", vendor="1d6b", product="0002", serial=b"0000:00:14.0")
    for name in ("1-0:1.0", "1-1:1.0", "..x", "usb", "1-1.2.3.", "a\nb"):
        (tree.devices / name).mkdir()
    (tree.devices / "1-9").mkdir()  # vanished between listdir and read: no files any more
    assert subjects(tree.sensor()) == ["1d6b:0002/0000:00:14.0"]


def test_without_descriptors_the_directories_are_read(tree: Tree) -> None:
    tree.plug("1-1")
    (tree.devices / "1-1/descriptors").unlink()
    entry = tree.devices / "1-1/1-1:1.0"
    entry.mkdir()
    for name, text in (("Class", "08"), ("SubClass", "06"), ("Protocol", "50")):
        (entry / f"bInterface{name}").write_text(text + "\n")
    [seen] = tree.sensor().observe(1)
    assert seen.columns["interfaces"] == ("080650",)


def test_alternate_settings_with_other_functions_count() -> None:
    data = descriptors(
        interface(0, "020600"), interface(1, "0a0000"), interface(1, "0a0000", 1), interface(1, "ff0000", 2)
    )
    assert parse_usb.interfaces_of(data) == ("020600", "0a0000", "ff0000")


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_descriptors(data: bytes) -> None:
    for triple in parse_usb.interfaces_of(data):
        assert len(triple) == 6
        assert bytes.fromhex(triple) in data
