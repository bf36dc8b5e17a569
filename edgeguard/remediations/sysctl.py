"""Kernel settings: write back the value that the baseline holds."""

from __future__ import annotations

import os
import re

from edgeguard.errors import RemediationRefused
from edgeguard.remediations import Order, Plan, World

VALUE_MAX = 256  # bytes; the longest that a rule speaks of (a list of ports) is far shorter
KEY = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_/:@-]+){1,7}")
ONE_WAY = frozenset(
    # from these values the kernel knows no way back but a reboot
    (
        ("kernel.modules_disabled", "1"),
        ("kernel.kexec_load_disabled", "1"),
        ("kernel.unprivileged_bpf_disabled", "1"),
        ("kernel.yama.ptrace_scope", "3"),
    )
)


class SetSysctl:
    """One key, back to its reference value."""

    verb = "set-sysctl"
    kinds = ("sysctl",)

    def prepare(self, order: Order, world: World) -> Plan:
        if order.reference is None:
            raise RemediationRefused("the baseline has no reference value for this setting")
        want = order.reference.get("value")
        if not isinstance(want, str) or not 0 < len(want) <= VALUE_MAX or not want.isprintable():
            raise RemediationRefused("the reference value is not one that can be written")
        if (order.subject, want) in ONE_WAY:
            raise RemediationRefused("this setting cannot be undone without a reboot; set it by hand")
        before = _read(_path(order.subject, world))
        return {"key": order.subject, "want": want, "before": before}

    def apply(self, plan: Plan, world: World) -> str:
        _write(_path(plan["key"], world), plan["want"])
        return f"{plan['key']} is {plan['want']} again"

    def verify(self, plan: Plan, world: World) -> bool:
        want: str = plan["want"]
        return _read(_path(plan["key"], world)).split() == want.split()

    def revert(self, plan: Plan, world: World) -> str:
        _write(_path(plan["key"], world), plan["before"])
        return f"{plan['key']} is {plan['before']} as before"


def _path(key: str, world: World) -> str:
    """The file of a key. As sysctl(8) has it, a `/` in a key stands for a dot in a name (eth0/1: eth0.1)."""
    if not KEY.fullmatch(key) or ".." in key:
        raise RemediationRefused("that is not the name of a kernel setting")
    names = [part.replace("/", ".") for part in key.split(".")]
    if any(name in (".", "..") for name in names):
        raise RemediationRefused("that is not the name of a kernel setting")
    return "/".join([world.proc, "sys", *names])


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RemediationRefused(f"this kernel does not have it ({error.strerror})") from error
    with open(fd, "rb") as file:
        return file.read(VALUE_MAX).decode(errors="surrogateescape").strip()


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode() + b"\n")
    finally:
        os.close(fd)
