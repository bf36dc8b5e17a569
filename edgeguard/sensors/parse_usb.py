"""What a USB device says about itself, taken apart: the interfaces out of its raw descriptors. Pure.

The bytes come from the device, so anything may be in them: every length is checked, and what is broken ends the walk.
"""

from __future__ import annotations

import re

DESCRIPTORS_MAX = 64 * 1024  # bytes; the kernel keeps at most 8 configurations of 64 KiB, real devices have < 2 KiB
STRING_MAX = 384  # bytes; a string descriptor holds 126 UTF-16 units, which the kernel gives as at most 378 of UTF-8
INTERFACES_MAX = 256  # distinct ones; bNumInterfaces is one byte

_CONFIGURATION = 2
_INTERFACE = 4
_PORT = re.compile(r"usb\d+|\d+-\d+(\.\d+)*")
_HEX4 = re.compile(r"[0-9a-f]{4}")


def interfaces_of(descriptors: bytes) -> tuple[str, ...]:
    """Class, subclass and protocol ("080650") of every interface in every configuration, sorted.

    Alternate settings count when they offer another function. From the descriptors and not from the interface
    directories, because those appear only after the `add` event and vanish when the device is deauthorised.
    """
    seen: set[tuple[int, int, str]] = set()
    configuration = 0
    offset = 0
    while offset + 2 <= len(descriptors) and len(seen) < INTERFACES_MAX:
        length, kind = descriptors[offset], descriptors[offset + 1]
        if length < 2:
            break  # no length: nothing after this can be trusted
        body = descriptors[offset : offset + length]
        if kind == _CONFIGURATION:
            configuration += 1
        elif kind == _INTERFACE and len(body) >= 8:
            seen.add((configuration, body[2], body[5:8].hex()))
        offset += length
    return tuple(sorted(triple for _, _, triple in seen))


def is_device(name: str) -> bool:
    """Is this name in /sys/bus/usb/devices a device (usb1, 1-1.2) and not an interface (1-1.2:1.0)?"""
    return _PORT.fullmatch(name) is not None


def port_order(name: str) -> tuple[int, ...]:
    """Sorts 1-2 before 1-10, and hubs before what is plugged into them."""
    return tuple(int(part) for part in re.findall(r"\d+", name))


def hex4(text: str) -> str:
    """A vendor or product id as four hex digits, "0000" if it is none."""
    return text if _HEX4.fullmatch(text) else "0000"


def subject(vendor: str, product: str, serial: str, port: str) -> str:
    """Natural key: what has no serial number is known by where it is plugged in."""
    return f"{vendor}:{product}/{serial}" if serial else f"{vendor}:{product}@{port}"
