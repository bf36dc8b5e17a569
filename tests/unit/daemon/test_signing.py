"""Baselines made by real helpers, at the same time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeguard.baseline.store import Store
from edgeguard.codec import cbor
from edgeguard.codec.values import columns_to_plain, from_plain, to_plain
from edgeguard.daemon.frames import Unpacker, watches_to_plain
from edgeguard.daemon.signing import algorithm_of, trust_of
from edgeguard.model import Origin
from edgeguard.settings import Settings, load

REPOSITORY = Path(__file__).parents[3]
HELPER = REPOSITORY / "packaging" / "bin" / "edgeguard-helper"

SETTINGS = """
[paths]
root = "{base}/root"
state = "{base}/state"
runtime = "{base}/run"
exchange = "{base}/exchange"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
"""


class World:
    def __init__(self, base: Path) -> None:
        for name in ("root/etc", "state/baseline", "state/keys", "state/vault", "policy"):
            (base / name).mkdir(parents=True)
        (base / "root/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (base / "policy/10.toml").write_text('[[watch]]\npath = "/etc"\ncategory = "config"\n')
        self.file = base / "agent.toml"
        self.file.write_text(SETTINGS.format(base=base))
        self.settings: Settings = load(str(self.file))
        self.store = Store(self.settings.paths.state)

    def start(self, verb: str, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HELPER), verb, "--settings", str(self.file)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin
        process.stdin.write(cbor.encode(request))
        process.stdin.close()
        return process

    def answer(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdout
        messages = Unpacker().feed(process.stdout.read())
        process.stdout.close()
        process.wait()
        return messages[-1]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    assert made.answer(made.start("learn", {"reason": "test"}))["revision"] == 1
    return made


def test_what_is_accepted_at_the_same_time_is_all_accepted(world: World) -> None:
    rows = [["sysctl", to_plain(f"net.test.{number}"), columns_to_plain({"value": "1"})] for number in range(6)]
    running = [world.start("rebase", {"accept": [row], "note": ""}) for row in rows]
    revisions = sorted(world.answer(process)["revision"] for process in running)
    assert revisions == [2, 3, 4, 5, 6, 7]
    trust = trust_of(world.settings)
    baseline = world.store.current(trust.trusted, trust.device, 2**41)
    assert baseline is not None
    assert {f"net.test.{number}" for number in range(6)} <= baseline.references["sysctl"].keys()


def test_learning_and_accepting_leave_the_manifest_that_is_named(world: World) -> None:
    """While one makes a revision, the other waits; and a draft is not tidied away."""
    with world.store.alone():
        Path(world.store.directory, "manifest.draft").write_bytes(b"a draft")
        learn = world.start("learn", {"reason": "again"})
        with pytest.raises(subprocess.TimeoutExpired):
            learn.wait(3)
        world.store.prune()
    assert world.answer(learn)["revision"] == 2
    row = ["sysctl", to_plain("net.test"), columns_to_plain({"value": "1"})]
    assert world.answer(world.start("rebase", {"accept": [row], "note": ""}))["revision"] == 3
    trust = trust_of(world.settings)
    baseline = world.store.current(trust.trusted, trust.device, 2**41)
    assert baseline is not None
    assert baseline.files is not None
    assert os.path.exists(world.store.manifest_path(baseline.files.sha256))


def judged_by(world: World) -> dict[str, Any]:
    trust = trust_of(world.settings)
    baseline = world.store.current(trust.trusted, trust.device, 2**41)
    assert baseline is not None
    assert baseline.files is not None
    return {
        "watches": watches_to_plain(baseline.policy.watches),
        "manifest": [baseline.files.sha256, baseline.files.size],
        "digest": algorithm_of(world.store, baseline).value,
    }


def words(world: World, verb: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a helper says."""
    process = world.start(verb, {**judged_by(world), **request})
    assert process.stdout
    said = Unpacker().feed(process.stdout.read())
    process.stdout.close()
    process.wait()
    return said


def sweep(world: World, origin: Origin) -> list[dict[str, Any]]:
    request = {"origin": int(origin), "low": False, "full": False, "compare": False, "targets": []}
    return words(world, "sweep", request)


def deep(world: World, **more: Any) -> list[dict[str, Any]]:
    return words(world, "deep", {"slices": 2, "seconds": 60, **more})


def subjects(said: list[dict[str, Any]]) -> list[Any]:
    return [from_plain(row[1]) for frame in said for row in frame.get("observations", [])]


def test_a_deep_sweep_goes_on_where_its_position_cannot_be_kept(world: World) -> None:
    """Else it would read the same part again as long as the disk is full."""
    for name in ("a", "b", "c"):
        (Path(world.settings.paths.root) / "etc" / name).write_text(name * 10_000)
    assert world.answer(world.start("learn", {"reason": "more"}))["revision"] == 2
    os.mkdir(f"{world.settings.paths.state}/deep.cbor.new")  # the disk takes nothing
    first = deep(world)[-1]["deep"]
    assert first["problem"] == os.strerror(errno.EISDIR)
    second = deep(world, position=first["position"])[-1]["deep"]
    assert first["files"] + second["files"] == 4
    assert (first["complete"], second["complete"]) == (False, True)
    os.rmdir(f"{world.settings.paths.state}/deep.cbor.new")
    assert "problem" not in deep(world)[-1]["deep"]


def test_damage_that_only_a_deep_sweep_reads_is_mended(world: World) -> None:
    """An unchanged directory is carried over as it is kept, and what is kept of its files is not read."""
    observed = Path(world.settings.paths.state, "observed.db")
    time.sleep(2.1)  # what was just changed is looked at again
    sweep(world, Origin.SWEEP)
    os.rename(f"{observed}.swept", observed)
    data = observed.read_bytes()
    at = data.index(b"passwd", data.index(b"passwd") + 6) + len(b"passwd")
    observed.write_bytes(data[:at] + b"\x07" + data[at + 1 :])  # marks which names have a digest
    assert sweep(world, Origin.SWEEP)[-1]["summary"]["damaged"] is False
    assert "damaged" in deep(world)[-1]["error"]
    assert sweep(world, Origin.SWEEP)[-1]["summary"]["written"]
    os.rename(f"{observed}.swept", observed)
    assert deep(world)[-1]["deep"]["files"] == 1


def test_a_learning_that_comes_to_no_baseline_takes_nothing_for_known(world: World) -> None:
    """What changed before it, and nobody has told yet, is still found."""
    state = Path(world.settings.paths.state)
    before = (state / "observed.db").read_bytes()
    (Path(world.settings.paths.root) / "etc/evil").write_text("came while nobody looked\n")
    with world.store.alone():
        learn = world.start("learn", {"reason": "again"})
        deadline = time.monotonic() + 60
        while not (state / "observed.db.learned").exists() and (state / "observed.db").read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        learn.kill()
        learn.wait()
        assert learn.stdout
        learn.stdout.close()
    assert "/etc/evil" in subjects(sweep(world, Origin.DOWN))


def test_alone_is_for_one(world: World) -> None:
    entered = threading.Event()

    def enter() -> None:
        with Store(world.settings.paths.state).alone():
            entered.set()

    thread = threading.Thread(target=enter)
    with world.store.alone():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set()


def accept(world: World, columns: dict[str, str] | None) -> int:
    row = ["sysctl", to_plain("net.test"), None if columns is None else columns_to_plain(columns)]
    revision: int = world.answer(world.start("rebase", {"accept": [row], "note": ""}))["revision"]
    return revision


def expected(world: World) -> Any:
    trust = trust_of(world.settings)
    baseline = world.store.current(trust.trusted, trust.device, 2**41)
    assert baseline is not None
    return baseline.references["sysctl"].get("net.test")


def test_what_was_accepted_can_be_taken_back(world: World) -> None:
    forget = {"forget": [["sysctl", to_plain("net.test")]], "note": ""}
    accept(world, {"value": "1"})
    accept(world, {"value": "2"})
    world.answer(world.start("rebase", {"note": "something else", "accept": []}))
    assert expected(world) == {"value": "2"}
    world.answer(world.start("rebase", forget))
    assert expected(world) == {"value": "1"}
    world.answer(world.start("learn", {"reason": "again"}))
    answer = world.answer(world.start("rebase", {"forget": [["sysctl", to_plain("never.heard")]], "note": ""}))
    assert answer["name"] == "NotKept"


def test_what_never_was_expected_is_not_after_taking_back(world: World) -> None:
    accept(world, {"value": "1"})
    world.answer(world.start("rebase", {"forget": [["sysctl", to_plain("net.test")]], "note": ""}))
    assert expected(world) is None


def test_an_older_baseline_is_refused_in_true_words(world: World) -> None:
    accept(world, {"value": "1"})
    for revision, words in (
        (1, "revision 1 is older than 2, which was in force"),
        (2, "revision 2 is in force already"),
    ):
        path = to_plain(world.store.path_of(revision))
        answer = world.answer(world.start("install", {"path": path, "manifest": to_plain("")}))
        assert (answer["name"], answer["error"]) == ("OlderRevision", words)


def copies(world: World) -> set[str]:
    return {path.read_text() for path in Path(world.settings.paths.state, "vault").iterdir()}


def test_a_policy_that_asks_for_copies_gets_them_of_what_is_as_it_should_be(world: World) -> None:
    etc = Path(world.settings.paths.root, "etc")
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    (etc / "issue").write_text("welcome\n")
    (etc / "x.key").write_text("secret\n")
    (etc / "large").write_text("x" * 70_000)
    assert world.answer(world.start("learn", {"reason": "again"}))["revision"] == 2
    assert copies(world) == set()
    (etc / "issue").write_text("changed since\n")
    policy = '[[watch]]\npath = "/etc"\ncategory = "config"\ndiff = true\nnodiff = ["**/*.key"]\n'
    Path(world.settings.paths.vendor_policy, "10.toml").write_text(policy)
    assert world.answer(world.start("rebase", {"policy": True, "note": ""}))["revision"] == 3
    assert copies(world) == {"127.0.0.1 localhost\n", "root:x:0:0::/root:/bin/sh\n"}
