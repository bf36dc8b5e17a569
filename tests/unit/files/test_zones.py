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


def test_going_down_in_one_call_is_going_down_step_by_step() -> None:
    plan = Plan(WATCHES)
    for path in PATHS:
        steps = ["", *("/".join(path.split("/")[: end + 1]) for end in range(1, path.count("/") + 1))]
        for directory in steps:
            zone = plan.zone(directory).down(directory, path)
            for name in ("x", "x.dpkg-new", "known_hosts"):
                assert zone.decide(f"{path}/{name}") == plan.decide(f"{path}/{name}"), (directory, path)


def test_beyond_a_mount_only_what_begins_there_or_below_holds() -> None:
    plan = Plan([*WATCHES, Watch("/", "other", only="setid"), Watch("/mnt/*", "x"), Watch("/mnt/a/deep", "y")])

    def beyond(path: str) -> dict[str, str]:
        zone = plan.zone(path).beyond(plan.zone(path.rpartition("/")[0]))
        found = {name: zone.down(path, path + name.rpartition("/")[0]).decide(path + name) for name in BELOW}
        return {name: watch.path for name, watch in found.items() if watch is not None}

    assert beyond("/home") == {"/anna/.ssh": "/home/*/.ssh"}
    assert beyond("/home/anna") == {"/.ssh": "/home/*/.ssh", "/.ssh/id": "/home/*/.ssh"}
    assert beyond("/usr/share") == {"/doc/su": "/usr/share/doc"}
    assert beyond("/usr/local") == beyond("/srv") == {}
    assert set(beyond("/mnt/b").values()) == {"/mnt/*"}
    assert set(beyond("/mnt/a").values()) == {"/mnt/*", "/mnt/a/deep"}


BELOW = ["/su", "/.ssh", "/.ssh/id", "/.ssh/known_hosts", "/anna/.ssh", "/doc/su", "/deep", "/deep/x"]
