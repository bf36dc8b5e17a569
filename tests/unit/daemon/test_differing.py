"""What changed in a file is compared where the policy asks for it and a copy is there, and nowhere else; within bounds
of time and number; and what cannot be compared says why.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from edgeguard.codec.digests import Algorithm
from edgeguard.daemon import differing
from edgeguard.daemon.differing import BURST_S, STANDING_MAX, TOO_MANY, TOO_MUCH, Differing
from edgeguard.daemon.status import _public
from edgeguard.evaluate.engine import Engine
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Columns, Condition, Observation, Operator, Origin, Rule, Severity, Status, Watch
from edgeguard.sensors.copies import FILE_MAX
from edgeguard.settings import Paths, Settings

WATCH = Watch("/etc", "config", diff=("**",), nodiff=("/etc/*.key",))


class World:
    """A root with files, a vault, and what is expected of them."""

    def __init__(self, base: Path) -> None:
        self.root, self.vault = base / "root", base / "state/vault"
        (self.root / "etc").mkdir(parents=True)
        self.vault.mkdir(parents=True)
        self.expected: dict[str, Columns] = {}
        self.watch: Watch | None = WATCH
        self.deviates = True
        self.now = 0.0
        settings = Settings(paths=Paths(root=str(self.root), state=str(base / "state")))
        self.differing = Differing(
            settings, lambda _path: self.watch, self.expected.get, lambda _seen: self.deviates, lambda: self.now
        )

    def was(self, path: str, content: bytes, *, copy: bool = True) -> None:
        self.expected[path] = {"type": "file", "sha256": sha256(content).digest()}
        if copy:
            (self.vault / sha256(content).hexdigest()).write_bytes(content)

    def seen(self, path: str, content: bytes | None, **more: Any) -> Observation:
        if content is None:
            return Observation("file", path, {"category": "config"}, 1, Status.ABSENT)
        (self.root / path[1:]).write_bytes(content)
        columns: Columns = {"type": "file", "sha256": sha256(content).digest(), "category": "config"}
        return Observation("file", path, columns, 1)._replace(**more)

    def told(self, path: str, content: bytes | None, **more: Any) -> Columns:
        return self.differing.told(self.seen(path, content, **more)).columns


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_change_is_compared_with_its_copy(world: World) -> None:
    world.was("/etc/crontab", b"* * * * * root /a\n")
    columns = world.told("/etc/crontab", b"* * * * * root /b\n")
    assert columns["diff"] == ("@@ -1 +1 @@", "-* * * * * root /a", "+* * * * * root /b")
    assert columns["changes"] == ("job added: * * * * * root /b", "job removed: * * * * * root /a")


def test_what_is_new_or_gone_is_told_too(world: World) -> None:
    assert world.told("/etc/crontab", b"@reboot root /x\n")["changes"] == ("job added: @reboot root /x",)
    world.was("/etc/crontab", b"@reboot root /x\n")
    columns = world.told("/etc/crontab", None)
    assert columns["changes"] == ("job removed: @reboot root /x",)
    assert "diff" not in columns
    assert "changes" not in world.told("/etc/hosts", None)


@pytest.mark.parametrize(
    "watch",
    [
        None,
        WATCH._replace(diff=()),
        WATCH._replace(diff=("/etc/other",)),
        WATCH._replace(nodiff=("**/app*",)),
        WATCH._replace(category="key"),
        WATCH._replace(content=False),
        WATCH._replace(only="setid"),
    ],
)
def test_what_the_policy_does_not_ask_for_is_not_compared(world: World, watch: Watch | None) -> None:
    world.watch = watch
    world.was("/etc/app.conf", b"a\n")
    assert not {"diff", "changes"} & world.told("/etc/app.conf", b"b\n").keys()


def test_what_is_no_difference_or_no_finding_is_not_compared(world: World) -> None:
    world.was("/etc/app.conf", b"a\n")
    assert "diff" not in world.told("/etc/app.conf", b"a\n")
    assert "diff" not in world.told("/etc/app.conf", b"b\n", origin=Origin.LEARN)
    assert "diff" not in world.told("/etc/app.conf", b"b\n", status=Status.UNREADABLE)
    world.deviates = False
    assert "diff" not in world.told("/etc/app.conf", b"b\n")


def test_what_cannot_be_compared_says_why(world: World) -> None:
    path = "/etc/app.conf"
    world.was(path, b"a\n", copy=False)
    assert world.told(path, b"b\n")["diff"] == ("(no earlier copy to compare with)",)
    world.was(path, b"a\n")
    (world.vault / sha256(b"a\n").hexdigest()).write_bytes(b"something else\n")
    assert world.told(path, b"b\n")["diff"] == ("(the earlier copy is damaged)",)
    world.was(path, b"a\n")
    seen = world.seen(path, b"b\n")
    (world.root / "etc/app.conf").write_bytes(b"changed since\n")
    assert "it has changed since" in str(world.differing.told(seen).columns["diff"])
    (world.root / "etc/app.conf").unlink()
    assert "it cannot be read" in str(world.differing.told(seen).columns["diff"])
    os.mkfifo(world.root / "etc/app.conf")  # nothing is opened that could block
    assert world.differing.told(seen).columns["diff"] == ("(it is not a regular file)",)
    (world.root / "etc/app.conf").unlink()
    assert world.told(path, b"x" * (FILE_MAX + 1))["diff"] == (f"(larger than {FILE_MAX >> 10} KiB)",)


def test_comparing_takes_a_bounded_share_of_the_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_vault: str, _algorithm: Algorithm, _digest: bytes) -> bytes:
        world.now += 2 * BURST_S
        return b"a\n"

    monkeypatch.setattr("edgeguard.sensors.copies.earlier", slow)
    world.was("/etc/app.conf", b"a\n")
    assert "+b" in world.told("/etc/app.conf", b"b\n")["diff"]
    assert world.told("/etc/app.conf", b"c\n")["diff"] == (TOO_MUCH,)
    assert "+c" in world.differing.told(world.seen("/etc/app.conf", b"c\n"), asked=True).columns["diff"]
    world.now += 4 * BURST_S / differing.SHARE
    assert "+c" in world.told("/etc/app.conf", b"c\n")["diff"]


def test_the_number_of_differences_that_are_held_is_bounded(world: World) -> None:
    for number in range(STANDING_MAX):
        world.told(f"/etc/new{number}", b"x\n")
    assert world.told("/etc/one-more", b"x\n")["diff"] == (TOO_MANY,)
    assert "+y" in world.told("/etc/new0", b"y\n")["diff"]
    world.told("/etc/new0", None)
    assert "+x" in world.told("/etc/one-more", b"x\n")["diff"]


RULE = Rule("r", "EG-FILE-001", "file", Severity.HIGH, "t", (), (Condition("sha256", Operator.SAME, True),))


class References:
    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def expected(self, _kind: str, _subject: str) -> Columns:
        return {"sha256": self.digest}


def test_another_reference_value_ends_what_was_said_about_the_last_one() -> None:
    ledger = Ledger()
    engine = Engine((RULE,), (), References(b"a"))
    seen = Observation("file", "/etc/x", {"sha256": b"b", "diff": ("-a", "+b"), "changes": ("it",)}, 1)
    ledger.govern(engine, 1)
    ledger.apply(engine.evaluate(seen, 1), 1)
    ledger.govern(Engine((RULE,), (), References(b"a")), 2)
    assert ledger.open()[0].details == seen.columns
    assert _public(ledger.open()[0]).details == {"sha256": b"b"}
    ledger.govern(Engine((RULE,), (), References(b"c")), 3)
    assert ledger.open()[0].details == {"sha256": b"b"}
