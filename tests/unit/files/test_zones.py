"""The zones that a plan remembers: the same answers as without, and a deep directory costs its depth only once."""

from __future__ import annotations

import time

from edgeguard.model import Watch
from edgeguard.sensors.watching import Plan

WATCHES = [
    Watch("/usr", "program", ("**/*.dpkg-*", "**/.*.sw?")),
    Watch("/usr/share/doc", "other", only="setid"),
    Watch("/home/*/.ssh", "key", ("**/known_hosts*",)),
    Watch("/etc", "config", ("/etc/mtab", "/etc/lvm/archive")),
]
PATHS = [
    "/usr/bin/x",
    "/usr/bin/x.dpkg-new",
    "/usr/share/doc/a/b",
    "/home/anna/.ssh/authorized_keys",
    "/home/anna/.ssh/known_hosts",
    "/home/anna/x",
    "/etc/lvm/archive/x",
    "/etc/mtab",
    "/etc/passwd",
    "/var/x",
    "/x",
]


def test_remembered_zones_decide_the_same() -> None:
    plan = Plan(WATCHES)
    for _ in range(3):
        for path in PATHS:
            assert plan.decide(path) == Plan(WATCHES).decide(path), path


def test_going_down_deep_costs_each_level_once() -> None:
    """Level by level anew it would be quadratic in the depth: over a minute for this."""
    plan, path = Plan(WATCHES), "/usr"
    began = time.process_time()
    for _ in range(2000):
        path += "/d"
        assert plan.zone(path).watch is not None
    assert time.process_time() - began < 5
