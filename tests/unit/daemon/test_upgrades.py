"""What waits while packages are installed, how long, and what becomes of it. Clock, helpers and sensors are ours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import Entry
from edgeguard.daemon import upgrades as module
from edgeguard.daemon.upgrades import BEHIND_S, HOLD_S, NOT_BY_IT, SETTLE_S, UNREAD_S, Upgrades
from edgeguard.errors import DecodeError
from edgeguard.model import NOBODY, Actor, Observation, Origin, Severity, Status
from edgeguard.records.registry import STATES
from edgeguard.settings import Paths, Settings
from edgeguard.upgrades import expected, transactions

SHELL = Actor(pid=7, exe="/usr/bin/bash", parents=((5, "/usr/sbin/sshd"), (1, "/usr/lib/systemd/systemd")))
DPKG = Actor(pid=8, exe="/usr/bin/dpkg", parents=((5, "/usr/bin/apt-get"), (1, "/usr/lib/systemd/systemd")))
ANSWER: dict[str, Any] = {
    "overlay": [b"b" * 32, b"d" * 32, 10, [], [], []],
    "packages": [
        {"text": "a 1 → 2: 1 files, all as signed by the archive", "other": 0, "word": "archive"},
        {"text": "b 1 installed: 1 files, all as in the package", "other": 0, "word": "nobody"},
    ],
    "unproven": 0,
}


class Loop:
    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def watch(self, _fd: int, callback: Callable[[], object]) -> None:
        self.rung = callback

    def unwatch(self, _fd: int) -> None:
        pass

    def later(self, seconds: float, callback: Callable[[], object], slack: float = 0.0) -> object:
        del slack
        self.timers.append((seconds, callback))
        return callback

    def turn(self) -> None:
        """All timers that stand now."""
        standing, self.timers = self.timers, []
        for _, callback in standing:
            callback()


class Helpers:
    def __init__(self) -> None:
        self.running: dict[str, tuple[dict[str, Any], Callable[..., None], Callable[[str], None]]] = {}

    def start(self, verb: str, request: Any, on_message: Any, on_done: Any, **_: Any) -> bool:
        if verb in self.running:
            return False
        self.running[verb] = (request, on_message, on_done)
        return True

    def answer(self, verb: str, *messages: dict[str, Any], error: str = "") -> dict[str, Any]:
        request, on_message, on_done = self.running.pop(verb)
        for message in messages:
            on_message(message)
        on_done(error)
        return request


class Stub:
    """River, judging, telling, trouble and the files sensor, as far as they are asked."""

    def __init__(self) -> None:
        self.references = None
        self.caught_up = True
        self.wrong: set[str] = set()
        self.came: list[Any] = []
        self.told: list[tuple[str, Severity]] = []
        self.failed: list[str] = []
        self.looked: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.looked_for = 0

    def look_for_upgraded(self) -> None:
        self.looked_for += 1

    def deviates(self, observation: Observation, _now: int) -> bool:
        return observation.subject in self.wrong

    def packages_came(self, over: Any) -> None:
        self.came.append(over)
        self.wrong.discard("/usr/bin/a")

    algorithm = Algorithm.BLAKE2B

    def for_sweeps(self) -> dict[str, Any]:
        return {"watches": [], "manifest": None, "overlay": None, "digest": self.algorithm.value}

    def package(self, package: dict[str, Any], severity: Severity) -> None:
        self.told.append((package["text"], severity))

    def state(self, what: str, text: str) -> None:
        assert what in STATES
        self.said.append((what, text))

    def helper_failed(self, verb: str, error: str) -> None:
        self.failed.append(f"{verb}: {error}")

    def helper_well(self, _verb: str) -> None:
        pass

    def sensor(self, _name: str) -> Stub:
        return self

    def observe_path(self, path: str, now: int, actor: Actor, origin: Origin) -> Observation:
        self.looked.append(path)
        return seen(path, actor=actor, origin=origin, at=now)


def seen(
    path: str,
    *,
    category: str = "program",
    actor: Actor = NOBODY,
    origin: Origin = Origin.LIVE,
    at: int = 1,
    target: str = "",
) -> Observation:
    return Observation("file", path, {"category": category, "target": target}, at, Status.PRESENT, origin, actor)


class Desk:
    """Upgrades with everything around it."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.settings = Settings(paths=Paths(state=str(top / "state"), exchange=str(top / "spool"), root=str(top)))
        (top / "state/upgrades").mkdir(parents=True)
        self.spool = top / "spool/packages"
        self.loop, self.helpers, self.stub = Loop(), Helpers(), Stub()
        self.busy, self.sweeping = "dpkg works", False
        self.judged: list[Observation] = []
        self.compared = 0
        stub: Any = self.stub
        loop: Any = self.loop
        helpers: Any = self.helpers
        self.upgrades = Upgrades(
            loop, self.settings, helpers, stub, stub, stub, stub, stub, self.judged.append, self._compare,
            lambda: self.sweeping, lambda: self.busy,
        )  # fmt: skip
        self.upgrades.begin()

    def _compare(self) -> None:
        self.compared += 1

    def arrive(self, *paths: str, prepared: bool = True) -> str:
        """A transaction that expects these paths."""
        name = f"{time.time_ns():020d}-0"
        (self.spool / name).mkdir()
        self.loop.rung()
        entries = {os.fsencode(path): Entry(0o100644, 0, 0, 0, "", caps=b"\0" * 5) for path in paths}
        expected.write(transactions.manifest_of(self.settings.paths.state, name), entries)
        if prepared:
            self.helpers.answer("prepare", {"prepared": name, "troubles": []})
        return name

    def take(self, observation: Observation, *, wrong: bool = True) -> bool:
        if wrong:
            self.stub.wrong.add(observation.subject)
        return self.upgrades.holds(observation)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn()

    def end(self) -> dict[str, Any]:
        """dpkg ends, and the helper answers."""
        self.busy = ""
        self.pass_time(SETTLE_S + 1)
        request = self.helpers.answer("explain", ANSWER)
        self.loop.turn()
        return request


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk(tmp_path, monkeypatch)
    yield made
    made.upgrades.close()  # a user has 128 inotify queues


def test_without_a_transaction_nothing_waits(desk: Desk) -> None:
    assert not desk.take(seen("/usr/bin/a"))


def test_what_a_package_will_change_waits_and_is_looked_at_again(desk: Desk) -> None:
    name = desk.arrive("/usr/bin/a", "/usr/bin/b")
    assert desk.take(seen("/usr/bin/a", actor=DPKG))
    assert desk.take(seen("/usr/bin/b", actor=DPKG))
    assert not desk.take(seen("/usr/bin/other", actor=DPKG))
    assert not desk.take(Observation("process", "/usr/bin/a", {}, 1))
    request = desk.end()
    assert request["transactions"] == [name]
    assert request["held"] == [], "expected paths are looked at anyway"
    assert sorted(desk.stub.looked) == ["/usr/bin/a", "/usr/bin/b"]
    by_path = {observation.subject: observation for observation in desk.judged}
    assert by_path["/usr/bin/a"].note == ""
    assert by_path["/usr/bin/b"].note == NOT_BY_IT
    assert by_path["/usr/bin/b"].actor == DPKG
    assert not desk.upgrades.active
    assert not (desk.spool / name).exists()
    assert not os.path.exists(transactions.manifest_of(desk.settings.paths.state, name))
    assert [severity for _, severity in desk.stub.told] == [Severity.INFORMATIONAL, Severity.LOW]


def test_files_whose_content_nothing_proves_are_counted(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    desk.helpers.answer("explain", {**ANSWER, "unproven": 2})
    assert desk.stub.said == [("sweep", "upgrade: 2 files made of packages, their content is not proven")]
    desk.arrive("/usr/bin/a")
    desk.end()
    assert len(desk.stub.said) == 1


def test_what_does_not_differ_passes(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    assert not desk.take(seen("/usr/bin/a"), wrong=False)


def test_derived_files_go_to_the_helper_with_their_maker(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    assert desk.take(seen("/boot/initrd.img-6", category="boot", actor=DPKG))
    assert desk.take(seen("/usr/bin/vi", target="/etc/alternatives/vi"))
    assert not desk.take(seen("/boot/initrd.img-7", category="boot", actor=SHELL))
    assert not desk.take(seen("/etc/sudoers.d/x", category="sudoers", actor=SHELL))
    request = desk.end()
    assert sorted(map(tuple, request["held"])) == [(b"/boot/initrd.img-6", 1), (b"/usr/bin/vi", 2)]


def test_before_the_packages_are_read_all_waits_but_not_for_long(desk: Desk) -> None:
    desk.arrive("/usr/bin/a", prepared=False)
    assert desk.take(seen("/usr/bin/other"))
    desk.now += UNREAD_S + 1
    assert not desk.take(seen("/usr/bin/another"))


def test_nothing_waits_longer_than_its_bound_whatever_dpkg_does(desk: Desk) -> None:
    name = desk.arrive("/usr/bin/a", "/usr/bin/b")
    desk.take(seen("/usr/bin/b"))
    for _ in range(10):
        desk.pass_time(HOLD_S / 8)
    desk.helpers.answer("explain", ANSWER)
    desk.loop.turn()
    assert [(o.subject, o.note) for o in desk.judged] == [("/usr/bin/b", NOT_BY_IT)]
    assert desk.upgrades.active, "dpkg still works"
    assert desk.stub.told == [], "the summary comes at the end"
    assert (desk.spool / name).exists()


def test_what_comes_while_the_helper_looks_is_looked_at_afterwards(desk: Desk) -> None:
    desk.arrive("/usr/bin/a", "/usr/bin/b")
    desk.take(seen("/usr/bin/a"))
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    desk.take(seen("/usr/bin/b"))
    desk.helpers.answer("explain", ANSWER)
    desk.loop.turn()
    assert sorted(desk.stub.looked) == ["/usr/bin/a", "/usr/bin/b"]


def test_a_helper_that_fails_silences_nothing(desk: Desk) -> None:
    desk.arrive("/usr/bin/b")
    desk.take(seen("/usr/bin/b"))
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    desk.helpers.answer("explain", error="ended with exit code 1")
    desk.loop.turn()
    assert [o.note for o in desk.judged] == [NOT_BY_IT]
    assert desk.stub.failed == ["explain: ended with exit code 1"]
    assert not desk.upgrades.active
    assert desk.stub.looked_for == 1, "it may have signed before that"


def test_what_was_signed_counts_although_the_helper_ended_too_early(desk: Desk) -> None:
    """It tells that, and then keeps copies, which may take too long."""
    desk.arrive("/usr/bin/a")
    desk.take(seen("/usr/bin/a"))
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    desk.helpers.answer("explain", ANSWER, error="took too long and was ended")
    desk.loop.turn()
    assert desk.stub.failed == ["explain: took too long and was ended"]
    assert [over.sha256 for over in desk.stub.came] == [b"d" * 32]
    assert [o.note for o in desk.judged] == [""]
    assert desk.stub.looked_for == 0


def test_a_judgement_on_the_way_that_fails_is_tried_again_at_the_end(desk: Desk) -> None:
    desk.arrive("/usr/bin/a", "/usr/bin/b")
    desk.take(seen("/usr/bin/b"))
    for _ in range(10):
        desk.pass_time(HOLD_S / 8)
    desk.helpers.answer("explain", error="ended with exit code 1")
    desk.loop.turn()
    assert [o.subject for o in desk.judged] == ["/usr/bin/b"], "it waits no longer"
    desk.end()
    assert desk.stub.told


def test_a_transaction_that_cannot_be_read(desk: Desk) -> None:
    name = desk.arrive(prepared=False)
    desk.take(seen("/usr/bin/b"))
    desk.helpers.answer("prepare", {"refused": [name, "not a transaction"]})
    desk.loop.turn()
    assert [o.subject for o in desk.judged] == ["/usr/bin/b"]
    assert desk.stub.failed == [f"prepare: {name}: not a transaction"]
    assert not (desk.spool / name).exists()


def test_too_many_to_hold_are_found_by_a_sweep(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 1)
    desk.arrive("/usr/bin/a", "/usr/bin/b")
    assert desk.take(seen("/usr/bin/a"))
    assert desk.take(seen("/usr/bin/b"))
    desk.end()
    assert desk.compared == 1


def test_too_many_to_hold_are_found_also_where_nothing_is_judged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep may have told them, and tells them once."""
    monkeypatch.setattr(module, "HELD_MAX", 1)
    name = desk.arrive(prepared=False)
    assert desk.take(seen("/usr/bin/b"))
    assert desk.take(seen("/usr/bin/c"))
    desk.helpers.answer("prepare", {"refused": [name, "not a transaction"]})
    desk.loop.turn()
    assert [o.subject for o in desk.judged] == ["/usr/bin/b"]
    assert desk.compared == 1


def test_a_helper_is_asked_about_as_much_as_it_takes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED_BYTES", 50)
    desk.arrive("/usr/bin/a")
    paths = [f"/boot/initrd.img-{number}" for number in range(4)]
    for path in paths:
        assert desk.take(seen(path, category="boot", actor=DPKG))
    request = desk.end()
    assert request["held"] == [[os.fsencode(path), 1] for path in paths[:2]]
    assert sorted(o.subject for o in desk.judged) == paths, "the others are told"


def test_until_it_is_judged_it_is_in_memory_only(desk: Desk) -> None:
    desk.arrive("/usr/bin/b")
    assert not desk.upgrades.holding
    desk.take(seen("/usr/bin/b"))
    assert desk.upgrades.holding
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    assert desk.upgrades.holding, "the helper is asked about it"
    desk.helpers.answer("explain", ANSWER)
    assert desk.upgrades.holding, "it is to be looked at again"
    desk.loop.turn()
    assert [o.subject for o in desk.judged] == ["/usr/bin/b"]
    assert not desk.upgrades.holding


def test_the_first_round_ends_before_it_is_judged(desk: Desk) -> None:
    """At a start: what the sweep finds may be explained, too."""
    desk.arrive("/usr/bin/a")
    desk.busy, desk.sweeping = "", True
    desk.pass_time(SETTLE_S + 1)
    assert "explain" not in desk.helpers.running
    desk.sweeping = False
    desk.pass_time(1)
    assert "explain" in desk.helpers.running


def test_what_the_sensor_has_not_told_yet_is_waited_for(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    desk.busy, desk.stub.caught_up = "", False
    desk.pass_time(SETTLE_S + 1)
    assert "explain" not in desk.helpers.running
    assert desk.take(seen("/usr/bin/vi", target="/etc/alternatives/vi"))
    desk.stub.caught_up = True
    desk.pass_time(1)
    assert "explain" in desk.helpers.running


def test_a_sensor_that_never_catches_up_is_not_waited_for_for_ever(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    desk.busy, desk.stub.caught_up = "", False
    desk.pass_time(BEHIND_S + 1)
    assert "explain" in desk.helpers.running


def test_two_transactions_are_judged_together(desk: Desk) -> None:
    first = desk.arrive("/usr/bin/a")
    second = desk.arrive("/usr/bin/b")
    assert desk.end()["transactions"] == [first, second]
    assert not desk.upgrades.active


def test_what_waits_at_the_start_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool/packages" / f"{time.time_ns():020d}-0").mkdir(parents=True)
    desk = Desk(tmp_path, monkeypatch)
    assert desk.upgrades.active
    assert "prepare" in desk.helpers.running


def test_a_key_that_was_there_for_a_while_is_told(desk: Desk) -> None:
    """Somebody adds a source, lets a package be vouched for, and takes the source away."""
    path = "/etc/apt/sources.list.d/evil.list"
    desk.arrive("/usr/bin/a", prepared=False)
    assert desk.take(seen(path, category="config", at=7))
    desk.helpers.answer("prepare", {"prepared": next(iter(desk.upgrades._open)), "troubles": []})
    desk.stub.wrong.discard(path)
    assert not desk.take(seen(path, category="config", at=8), wrong=False)
    assert [(one.subject, one.at) for one in desk.judged] == [(path, 7)]


def test_a_keyring_that_a_package_brings_is_not_told_before_it_is_judged(desk: Desk) -> None:
    path = "/usr/share/keyrings/archive.gpg"
    desk.arrive(path)
    assert desk.take(seen(path))
    desk.end()
    assert [one.subject for one in desk.judged] == [path]


def test_a_damaged_manifest_of_a_transaction_ends_it(desk: Desk) -> None:
    name = desk.arrive("/usr/bin/a")
    assert desk.take(seen("/usr/bin/a"))

    class Damaged:
        def lookup(self, _path: bytes) -> None:
            raise DecodeError("torn")

    desk.upgrades._readers[name] = Damaged()  # type: ignore[assignment]
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    desk.loop.turn()
    assert desk.stub.looked == ["/usr/bin/a"]
    assert desk.stub.failed
    assert not desk.upgrades.active
    assert not (desk.spool / name).exists(), "no later start stumbles over it"


def test_whoever_holds_dpkgs_lock_for_ever_gains_hours_at_most(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    desk.pass_time(module.OPEN_S + 1)
    desk.helpers.answer("explain", ANSWER)
    assert not desk.upgrades.active


# -- accounts

COLUMNS: dict[str, Any] = {
    "name": "broker", "type": "user", "uid": 112, "gid": 118, "home": "/var/lib/broker", "shell": "/usr/sbin/nologin",
    "password": "locked", "members": (), "groups": ("broker",), "admins": (), "system": True, "privileged": False,
    "reaching": False, "nis": False,
}  # fmt: skip


def account(subject: str = "user broker", *, actor: Actor = DPKG, gone: bool = False, **more: Any) -> Observation:
    status = Status.ABSENT if gone else Status.PRESENT
    return Observation("account", subject, {} if gone else {**COLUMNS, **more}, 1, status, Origin.SWEEP, actor)


class Known:
    """Reference values: these accounts."""

    def __init__(self, **accounts: Any) -> None:
        self.accounts = {f"user {name}": columns for name, columns in accounts.items()}

    def expected(self, kind: str, subject: str) -> Any:
        return self.accounts.get(subject) if kind == "account" else None


def test_an_account_waits_and_is_judged_when_packages_have_explained_it(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    assert desk.take(account())
    assert desk.take(account("group broker", type="group", uid=None, actor=NOBODY))
    request = desk.end()
    columns = {name: COLUMNS[name] for name in ("uid", "gid", "home", "shell", "password")} | {"members": []}
    assert request["accounts"] == [["user broker", 1, columns], ["group broker", 2, {**columns, "uid": None}]]
    assert [(one.subject, one.note) for one in desk.judged] == [("user broker", NOT_BY_IT), ("group broker", NOT_BY_IT)]
    desk.judged.clear()
    desk.arrive("/usr/bin/a")
    assert desk.take(account())
    desk.busy = ""
    desk.stub.wrong.clear()  # as with new reference values
    desk.pass_time(SETTLE_S + 1)
    desk.helpers.answer("explain", ANSWER)
    assert [(one.subject, one.note) for one in desk.judged] == [("user broker", "")]


@pytest.mark.parametrize(
    "observation",
    [
        account(uid=0, privileged=True),
        account(password="set"),
        account(password="none"),
        account(password="unknown"),
        account(privileged=True),
        account(reaching=True),
        account(nis=True),
        account(system=False, uid=1001),
        account("user broker#2"),
        account(actor=SHELL),
        account("group broker", type="group", members=("eve",)),
        account("group broker", type="group", admins=("eve",)),
        account("user root", gone=True),
        account("user anna", gone=True, actor=SHELL),
        account("user anna", shell="/bin/bash"),
        account("group sudo", type="group", gid=27, privileged=True, members=("eve",)),
    ],
)
def test_what_amounts_to_more_or_is_anothers_is_told_at_once(desk: Desk, observation: Observation) -> None:
    references: Any = Known(anna=COLUMNS, root={**COLUMNS, "uid": 0})
    desk.stub.references = references
    desk.arrive("/usr/bin/a")
    assert not desk.take(observation)
    assert desk.end()["accounts"] == []


def test_an_account_that_changes_while_it_waits_is_told_as_it_is(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    assert desk.take(account())
    assert not desk.take(account(password="set"))
    assert desk.end()["accounts"] == []
    desk.arrive("/usr/bin/a")
    assert desk.take(account())
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)  # the helper has been asked
    assert not desk.take(account(shell="/bin/sh", privileged=True))
    desk.helpers.answer("explain", ANSWER)
    assert desk.judged == [], "the caller tells the newer one, and nobody the older"


def test_accounts_that_went_wait_and_without_an_answer_all_are_told(desk: Desk) -> None:
    references: Any = Known(broker=COLUMNS)
    desk.stub.references = references
    desk.arrive("/usr/bin/a")
    assert desk.take(account(gone=True))
    desk.busy = ""
    desk.pass_time(SETTLE_S + 1)
    request = desk.helpers.answer("explain", error="killed")
    assert request["accounts"] == [["user broker", 1, None]]
    assert [one.note for one in desk.judged] == [NOT_BY_IT]
    assert not desk.take(account("user other"))


def test_only_so_many_accounts_wait(desk: Desk) -> None:
    desk.arrive("/usr/bin/a")
    assert all(desk.take(account(f"user a{number}")) for number in range(module.ACCOUNTS_MAX))
    assert not desk.take(account("user more"))
    desk.pass_time(HOLD_S + 1)
    assert len(desk.helpers.answer("explain", ANSWER)["accounts"]) == module.ACCOUNTS_MAX
