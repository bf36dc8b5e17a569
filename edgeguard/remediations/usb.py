"""USB: switch off a device (sysfs `authorized`), so that no driver speaks to it. It stays plugged in and visible."""

from __future__ import annotations

import os
import re

from edgeguard.errors import RemediationRefused
from edgeguard.remediations import Order, Plan, World, preflight

PORT = re.compile(r"[0-9]{1,3}-[0-9]{1,3}(\.[0-9]{1,3}){0,6}")  # bus and the way through at most 7 hubs
IDENTITY = (("vendor", "idVendor"), ("product", "idProduct"), ("serial", "serial"))


class DeauthoriseUsb:
    """A device that is not in the baseline, at the port where it was found, if it is still that device."""

    verb = "deauthorise-usb"
    kinds = ("usb",)

    def prepare(self, order: Order, world: World) -> Plan:
        port = order.observed.get("port")
        if not isinstance(port, str) or not PORT.fullmatch(port):
            raise RemediationRefused("the finding does not say at which port it is")
        plan: Plan = {"port": port} | {name: str(order.observed.get(name) or "") for name, _ in IDENTITY}
        directory = _directory(plan, world)
        reason = preflight.usb_carries(os.path.realpath(directory), world.sys, world.proc)
        if reason:
            raise RemediationRefused(reason)
        return plan | {"before": _read(directory, "authorized")}

    def apply(self, plan: Plan, world: World) -> str:
        _write(_directory(plan, world), "0")
        return f"the device at port {plan['port']} is switched off"

    def verify(self, plan: Plan, world: World) -> bool:
        return _read(_directory(plan, world), "authorized") == "0"

    def revert(self, plan: Plan, world: World) -> str:
        _write(_directory(plan, world), "0" if plan["before"] == "0" else "1")
        return f"the device at port {plan['port']} is as before"


def _directory(plan: Plan, world: World) -> str:
    """The device's directory in sysfs, if the device there is the one in the plan."""
    directory = f"{world.sys}/bus/usb/devices/{plan['port']}"
    for name, file in IDENTITY:
        if _read(directory, file) != plan[name]:
            raise RemediationRefused("another device, or none, is at that port now")
    return directory


def _read(directory: str, name: str) -> str:
    try:
        with open(f"{directory}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def _write(directory: str, value: str) -> None:
    fd = os.open(f"{directory}/authorized", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
