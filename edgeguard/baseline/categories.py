"""Categories of files: what each is for, and which attributes of such a file are checked. Pure.

The one table: policies are read by it, `edgeguard why` shows what it gives a watch, and a test compares docs/policy.md
with it. A site defines its own with `[[category]]`; what they check comes from here or is written there. How a category
is judged (how bad, what to do) is said by rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeguard.model import ATTRIBUTES, GROWTH

CHECKS = (*ATTRIBUTES, GROWTH)
"""All that a category may ask for."""

RIGHTS = ("type", "mode", "uid", "gid")


class Category(NamedTuple):
    meaning: str
    checks: tuple[str, ...] = ATTRIBUTES


CATEGORIES: Mapping[str, Category] = {
    "program": Category("programs, libraries and what they load"),
    "config": Category("settings of the system"),
    "key": Category("private keys, and who may log in with which"),
    "boot": Category("what the device starts from"),
    "unit": Category("units of systemd and what makes them"),
    "cron": Category("what runs at given times"),
    "script": Category("scripts that run by themselves: at boot, at login, by udev, by dpkg"),
    "preload": Category("what the dynamic linker loads or searches"),
    "sudoers": Category("who may become root"),
    "account": Category(
        "lists of accounts, which are judged by their meaning", tuple(c for c in ATTRIBUTES if c != "sha256")
    ),
    "log": Category("files that grow and are rotated, and lose nothing", (*RIGHTS, GROWTH)),
    "volatile": Category("what a program writes all the time: that it is there, and whose it is", RIGHTS),
    "own": Category("EdgeGuard's own files"),
    "other": Category("anything else"),
}


def whole(checks: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of the table, each once, with the type, which every category checks."""
    return tuple(check for check in CHECKS if check == "type" or check in checks)
