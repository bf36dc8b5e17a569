"""Learning, accepting, comparing, upgrading and installing with digests of either kind, by the helper as it is started:
a baseline keeps what it has, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from test_signing import World as Signing
from test_upgrading import TOOL
from test_upgrading import World as Upgrading

from edgeguard.baseline import document
from edgeguard.baseline.document import Baseline, ManifestRef
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import Entry, Reader
from edgeguard.codec.values import columns_to_plain, to_plain
from edgeguard.daemon.signing import trust_of
from edgeguard.model import Origin
from edgeguard.records import compose, wire
from edgeguard.sensors.look import Seen, present
from edgeguard.upgrades import expected, transactions
from tests import lent

ETC = '[[watch]]\npath = "/etc"\ncategory = "config"\nprotect = true\n'
RULE = '[[rule]]\nid = "known"\ncode = "EG-FILE-002"\nkind = "file"\nwhere = {{ {} = "{}" }}\nexpect = {{ mode = 1 }}\n'
BLAKE2B = '[learn]\ndigest = "blake2b"\n'


def blake2b(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


class World(Signing):
    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        return self.answer(self.start(verb, request))

    def policy(self, text: str) -> None:
        Path(self.settings.paths.vendor_policy, "10.toml").write_text(text)

    def baseline(self) -> Baseline:
        trust = trust_of(self.settings)
        found = self.store.current(trust.trusted, trust.device, 2**41)
        assert found is not None
        return found

    def manifest(self) -> Reader:
        files = self.baseline().files
        assert files is not None
        return lent.manifest(self.store.manifest_path(files.sha256))

    def copies(self) -> set[str]:
        return set(os.listdir(f"{self.settings.paths.state}/vault"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


PASSWD = b"root:x:0:0::/root:/bin/sh\n"


def test_the_policy_chooses_and_the_next_learning_may_choose_otherwise(world: World) -> None:
    world.policy(ETC + BLAKE2B)
    assert world.ask("learn", reason="test")["contents"] == "blake2b"
    entry = world.manifest().lookup(b"/etc/passwd")
    assert entry is not None
    assert entry.digest == blake2b(PASSWD)
    assert world.copies() == {blake2b(PASSWD).hex()}
    world.policy(ETC + '[learn]\ndigest = "sha256"\n')
    assert world.ask("rebase", policy=True)["revision"] == 2
    assert world.manifest().algorithm is Algorithm.BLAKE2B, "a new policy does not read every file again"
    assert world.ask("learn", reason="again")["contents"] == "sha256"
    assert world.manifest().algorithm is Algorithm.SHA256
    assert hashlib.sha256(PASSWD).hexdigest() in world.copies()


def test_copies_of_the_baseline_before_hold_no_room(world: World) -> None:
    """Digests of another kind name the same content anew: there is room for one of the two."""
    with world.file.open("a") as file:
        file.write(f"\n[budget]\nvault_bytes = {len(PASSWD) + 10}\n")
    world.policy(ETC + BLAKE2B)
    assert world.ask("learn", reason="test")["revision"] == 1
    assert world.copies() == {blake2b(PASSWD).hex()}
    world.policy(ETC + '[learn]\ndigest = "sha256"\n')
    assert world.ask("learn", reason="again")["contents"] == "sha256"
    assert world.copies() == {hashlib.sha256(PASSWD).hexdigest()}


def test_a_rule_that_could_never_be_decided_comes_not_into_force(world: World) -> None:
    world.policy(ETC + BLAKE2B)
    assert world.ask("learn", reason="test")["revision"] == 1
    world.policy(ETC + RULE.format("sha256", "0f" * 32))
    said = world.ask("rebase", policy=True)
    assert "compares sha256 with a value, but the baseline has digests by BLAKE2b" in said["error"]
    assert world.baseline().revision == 1
    world.policy(ETC + RULE.format("blake2b", "0f" * 32))
    assert world.ask("rebase", policy=True)["revision"] == 2


def test_what_is_accepted_is_kept_by_the_baselines_digest(world: World) -> None:
    world.policy(ETC + BLAKE2B)
    world.ask("learn", reason="test")
    passwd = Path(world.settings.paths.root, "etc/passwd")
    passwd.write_bytes(b"accepted\n")
    columns = {"type": "file", "blake2b": blake2b(b"accepted\n"), "size": 9, "mode": 0o644, "uid": 0, "gid": 0}
    row = ["file", to_plain("/etc/passwd"), columns_to_plain(columns)]
    assert world.ask("rebase", accept=[row])["revision"] == 2
    assert world.copies() == {blake2b(PASSWD).hex(), blake2b(b"accepted\n").hex()}
    (change,) = world.ask("diff", against="")["changes"]
    assert blake2b(b"accepted\n").hex() in change["after"]["text"]


def test_two_baselines_with_other_digests_are_compared_without(world: World) -> None:
    world.policy(ETC + BLAKE2B)
    world.ask("learn", reason="test")
    root = Path(world.settings.paths.root)
    (root / "etc/new").write_bytes(b"x")
    (root / "etc/passwd").write_bytes(PASSWD + b"more\n")
    world.policy(ETC + '[learn]\ndigest = "sha256"\n')
    world.ask("learn", reason="again")
    changes = {change["subject"]: change["after"].get("text") for change in world.ask("diff", against="")["changes"]}
    assert changes["digest"] == "BLAKE2b -> SHA-256: contents are compared by their size only"
    assert changes["/etc/passwd"] == "size"
    assert changes["/etc/new"] is None
    assert "/etc/hostname" not in changes


def test_a_manifest_of_a_kind_of_tomorrow_is_refused(world: World, tmp_path: Path) -> None:
    """Signed or not: who cannot read its digests must not judge by them."""
    world.ask("learn", reason="test")
    trust, files = trust_of(world.settings), world.baseline().files
    assert files is not None
    data = bytearray(Path(world.store.manifest_path(files.sha256)).read_bytes())
    data[-9] = 2
    named = ManifestRef(hashlib.sha256(data).digest(), len(data), files.entries)
    strange = world.baseline()._replace(files=named, revision=9)
    (tmp_path / "strange.egm").write_bytes(data)
    (tmp_path / "strange.egb").write_bytes(document.sign(strange, trust.key))
    place = {"path": to_plain(str(tmp_path / "strange.egb")), "manifest": to_plain(str(tmp_path / "strange.egm"))}
    said = world.ask("install", **place)
    assert (said["code"], "not known here (number 2)" in said["error"]) == ("EG-BASE-006", True)
    assert world.baseline().revision == 1
    Path(world.store.manifest_path(named.sha256)).write_bytes(data)  # it is there already: then at the next load
    assert world.ask("install", **{**place, "manifest": ""})["revision"] == 9
    said = world.ask("load")
    assert said["none"]
    assert "not known here (number 2)" in said["refusals"][-1][2]


class Upgraded(Upgrading):
    def __init__(self, top: Path) -> None:
        (top / "site").mkdir()
        (top / "site/90.toml").write_text(BLAKE2B)
        super().__init__(top)

    def judged_by(self) -> dict[str, Any]:
        return {**super().judged_by(), "digest": "blake2b"}


def test_an_upgrade_is_explained_under_blake2b(tmp_path: Path) -> None:
    world = Upgraded(tmp_path)
    world.trust(*world.debs.values())
    answer = world.bring("3")  # its .debs were read for SHA-256, as before the first baseline: they are read again
    (package,) = answer["packages"]
    assert (package["signed"], package["other"]) == (1, 0)
    assert package["sha256"] == hashlib.sha256(world.debs["3"].read_bytes()).digest(), "what names a .deb stays"
    assert world.lookup(answer, TOOL).digest == blake2b(b"tool 3\n")
    assert world.ask("load", {})["overlay"] == answer["overlay"]


def test_a_file_slipped_in_under_blake2b_is_told(tmp_path: Path) -> None:
    world = Upgraded(tmp_path)
    world.trust(*world.debs.values())
    name = world.transaction(world.debs["3"], before={"tool": "2"})
    world.ask("prepare", {"transactions": [name], "digest": "blake2b"})
    with open(transactions.manifest_of(str(world.state), name), "rb") as file:
        assert Reader(file.fileno()).algorithm is Algorithm.BLAKE2B
    world.install(world.debs["3"])
    (world.root / TOOL[1:]).write_bytes(b"evil 3\n")
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    assert answer["packages"][0]["other"] == 1
    assert answer["look"] == [TOOL.encode()]
    assert world.lookup(answer, TOOL).digest == blake2b(b"tool 3\n")
    assert expected.load(str(world.state), name).owners[0].word == "operator"


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_record_says_which_digest_it_has(algorithm: Algorithm) -> None:
    """By the name of the column, and without the other."""
    entry = Entry(0o100644, 0, 0, 9, "config", b"d" * 32)
    seen = present("/etc/passwd", Seen(entry), algorithm, 5, Origin.SWEEP)
    record = compose.observation(seen, compose.Moment(1, 5))
    plain = wire.decode_record(wire.encode_record(record)).fields[2]
    assert plain[algorithm.value] == b"d" * 32
    assert {item.value for item in Algorithm} & plain.keys() == {algorithm.value}


def test_the_daemon_of_before_does_not_say_it(world: World) -> None:
    """A helper of this version, asked by a daemon that runs from before the upgrade: then it is SHA-256."""
    world.policy(ETC + '[learn]\ndigest = "sha256"\n')
    world.ask("learn", reason="test")
    files = world.baseline().files
    assert files is not None
    request = {"watches": [], "manifest": [files.sha256, files.size], "overlay": None, "targets": [], "low": False}
    said = world.ask("sweep", origin=1, full=False, compare=True, **request)
    assert said["summary"]["damaged"] is False
