"""Packages read and explained by real helpers: what is signed, what it lies over, and what ends it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from edgeguard.codec.layers import Layers
from edgeguard.codec.manifest import Reader
from edgeguard.codec.values import columns_to_plain, to_plain
from edgeguard.daemon.authority import packages_changed
from edgeguard.daemon.baselines import upgraded
from edgeguard.daemon.frames import watches_to_plain
from edgeguard.daemon.judging import Judging
from edgeguard.daemon.signing import trust_of
from edgeguard.errors import DecodeError, RemediationRefused
from edgeguard.sensors import Context
from edgeguard.sensors.packages import Packages
from edgeguard.upgrades import overlay
from edgeguard.upgrades.kinds import BY_DPKG
from tests import lent
from tests.unit.daemon.test_signing import World as Signing
from tests.unit.upgrades.debs import Home, needs_dpkg
from tests.unit.upgrades.debs import deb as build

pytestmark = needs_dpkg
POLICY = '[learn]\ndigest = "sha256"\n'
POLICY += '[[watch]]\npath = "/usr"\ncategory = "program"\n[[watch]]\npath = "/etc"\ncategory = "config"\n'
TOOL = "/usr/bin/tool"


class World(Signing, Home):
    """A device that has learned a package of version 2."""

    def __init__(self, top: Path) -> None:
        Signing.__init__(self, top)
        (top / "policy/10.toml").write_text(POLICY)
        self.top, self.root, self.state, self.spool = top, top / "root", top / "state", top / "exchange/packages"
        for path in (
            self.spool,
            self.root / "var/lib/dpkg/info",
            self.root / "var/lib/apt/lists",
            self.root / "etc/apt",
        ):
            path.mkdir(parents=True)
        self.status: dict[str, str] = {}
        self.count = 0
        self.debs = {
            version: build(top, "tool", version, {TOOL: f"tool {version}\n"}, conffiles="")
            for version in ("1", "2", "3")
        }
        self.trusted: list[bytes] = []
        self.install(self.debs["2"])
        assert self.ask("learn", {"reason": "test"})["revision"] == 1

    def trust(self, *debs: Path) -> None:
        """The operator trusts an archive with these, without a signature."""
        digests = "".join(f"Package: x\nSHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n\n" for deb in debs)
        (self.root / "etc/apt/sources.list").write_text("deb [trusted=yes] http://h/d s main\n")
        (self.root / "var/lib/apt/lists/h_d_dists_s_main_binary-all_Packages").write_text(digests)

    def ask(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        return self.answer(self.start(verb, request))

    def judged_by(self) -> dict[str, Any]:
        trust = trust_of(self.settings)
        baseline = self.store.current(trust.trusted, trust.device, 2**41)
        assert baseline is not None
        assert baseline.files is not None
        return {
            "watches": watches_to_plain(baseline.policy.watches),
            "manifest": [baseline.files.sha256, baseline.files.size],
            "overlay": None,
        }

    def bring(self, version: str, held: list[Any] | None = None) -> dict[str, Any]:
        """A version is installed and explained; the helper's answer."""
        before = {"tool": self.status["tool"].partition("Version: ")[2].strip()}
        name = self.transaction(self.debs[version], before=before)
        assert self.ask("prepare", {"transactions": [name]})["prepared"] == name
        self.install(self.debs[version])
        return self.ask("explain", {"transactions": [name], "held": held or [], **self.judged_by()})

    def judge(self, *names: str) -> tuple[Layers, tuple[overlay.Notable, ...]]:
        """These transactions are explained; the reference values that came, and what somebody should know of."""
        for name in names:
            assert self.ask("prepare", {"transactions": [name]})["prepared"] == name
        answer = self.ask("explain", {"transactions": list(names), "held": [], **self.judged_by()})
        over = upgraded(answer["overlay"])
        assert over is not None
        top = lent.manifest(overlay.manifest_path(str(self.state), over.sha256))
        return Layers(None, top), over.notable

    def lookup(self, answer: dict[str, Any], path: str) -> Any:
        over = upgraded(answer["overlay"])
        assert over is not None
        with open(overlay.manifest_path(str(self.state), over.sha256), "rb") as file:
            return Layers(None, Reader(file.fileno())).lookup(path.encode())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_upgrade_from_the_spool_to_signed_references(world: World) -> None:
    world.trust(*world.debs.values())
    answer = world.bring("3")
    (package,) = answer["packages"]
    assert package["text"] == ("tool 2 → 3: 1 files, all as in a package that the operator trusts without a signature")
    assert world.lookup(answer, TOOL).digest == hashlib.sha256(b"tool 3\n").digest()
    loaded = world.ask("load", {})
    assert loaded["overlay"] == answer["overlay"], "after a restart it is there"
    assert loaded["overlay"][3] == [], "nothing to tell of a package that somebody vouches for"


def test_the_same_transaction_twice_is_told_once(world: World, tmp_path: Path) -> None:
    """unattended-upgrades lets apt call the hook twice. One that has other packages, or another version, is told."""
    empty = build(tmp_path, "empty", "1", {"/usr/share/doc/x": "x\n"})
    world.trust(*world.debs.values(), empty)
    names = [world.transaction(world.debs[version], empty, before={"tool": "2"}) for version in ("1", "3", "3")]
    for name in names:
        assert world.ask("prepare", {"transactions": [name]})["prepared"] == name
    world.install(world.debs["3"])
    world.install(empty)
    answer = world.ask("explain", {"transactions": names, "held": [], **world.judged_by()})
    told = [(package["name"], package["after"], package["signed"]) for package in answer["packages"]]
    assert told[-2:] == [("tool", "3", 1), ("empty", "1", 1)]
    assert [package[:2] for package in told].count(("tool", "3")) == 1
    assert ("tool", "1") in [package[:2] for package in told]


def test_more_than_one_upgrade(world: World, tmp_path: Path) -> None:
    other = build(tmp_path, "more", "1", {"/usr/bin/more": "m\n"})
    world.trust(*world.debs.values(), other)
    first = world.bring("3")
    name = world.transaction(other)
    world.install(other)
    world.ask("prepare", {"transactions": [name]})
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    assert world.lookup(answer, TOOL) is not None, "what the first one brought is kept"
    assert world.lookup(answer, "/usr/bin/more") is not None
    assert manifests(world) == names_of(first, answer), "a sweep may have been asked for while the first one held"
    last = world.bring("1")
    assert manifests(world) == names_of(answer, last)


def manifests(world: World) -> set[str]:
    return {path.name for path in (world.state / "upgrades").iterdir() if len(path.name) == 68}


def names_of(*answers: dict[str, Any]) -> set[str]:
    found = [upgraded(answer["overlay"]) for answer in answers]
    return {f"{one.sha256.hex()}.egm" for one in found if one is not None}


def test_a_package_that_nobody_vouches_for_is_notable_until_another_comes(world: World) -> None:
    answer = world.bring("3")
    over = upgraded(answer["overlay"])
    assert over is not None
    assert [(item.name, item.version, item.word, item.before) for item in over.notable] == [("tool", "3", "nobody", "")]
    world.trust(*world.debs.values())
    again = upgraded(world.bring("3")["overlay"])
    assert again is not None
    assert again.notable == ()


def test_an_answer_is_one_that_the_daemon_takes(world: World, tmp_path: Path) -> None:
    """Beyond, it would be thrown away, after it was signed: what is to be looked at would not be."""
    world.trust(*world.debs.values())
    folder = "/usr/lib/" + "/".join("d" * 240 for _ in range(12))
    files = {f"{folder}/{number:03d}{'x' * 200}": "x\n" for number in range(800)}
    large = build(tmp_path, "large", "1", files)
    world.trust(large)
    name = world.transaction(large)
    world.install(large)
    for path in files:
        (world.root / path[1:]).write_text("slipped in\n")
    assert world.ask("prepare", {"transactions": [name]})["prepared"] == name
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    assert 600 < len(answer["look"]) < 800
    assert answer["compare"] is True
    (package,) = answer["packages"]
    assert package["other"] == 800
    assert 0 < len(package["others"]) < 20


def test_the_same_package_once_more_is_not_notable(world: World) -> None:
    over = upgraded(world.bring("2")["overlay"])
    assert over is not None
    assert over.notable == ()
    again = build(world.top / "other", "tool", "2", {TOOL: "another of the same name\n"})
    name = world.transaction(again, before={"tool": "2"})
    world.install(again)
    world.ask("prepare", {"transactions": [name]})
    changed = upgraded(world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})["overlay"])
    assert changed is not None
    assert [item.name for item in changed.notable] == ["tool"]
    name = world.transaction(again, before={"tool": "2"})
    world.ask("prepare", {"transactions": [name]})
    still = upgraded(world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})["overlay"])
    assert still is not None
    assert still.notable == changed.notable, "once more does not make it better"


def test_a_way_back_is_notable_whatever_the_hook_was_told(world: World) -> None:
    world.trust(*world.debs.values())
    world.bring("3")
    name = world.transaction(world.debs["1"], before={"tool": "1"})  # "installed again", says whoever made this
    world.install(world.debs["1"])
    world.ask("prepare", {"transactions": [name]})
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    over = upgraded(answer["overlay"])
    assert over is not None
    assert [(item.name, item.before) for item in over.notable] == [("tool", "3")]
    assert answer["packages"][0]["text"].startswith("tool 3 → 1")


def test_also_against_the_version_that_was_learned(world: World) -> None:
    world.trust(*world.debs.values())
    over = upgraded(world.bring("1")["overlay"])
    assert over is not None
    assert [(item.name, item.before) for item in over.notable] == [("tool", "2")]


def test_a_way_back_over_a_removal_is_notable(world: World) -> None:
    world.trust(*world.debs.values())
    world.install(world.debs["1"])
    world.ask("learn", {"reason": "again"})
    world.bring("3")
    name = world.transaction(removed=("tool",))
    world.say("tool", "3", "config-files")
    world.ask("prepare", {"transactions": [name]})
    gone = upgraded(world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})["overlay"])
    assert gone is not None
    assert gone.notable == ()
    name = world.transaction(world.debs["2"])
    world.install(world.debs["2"])
    world.ask("prepare", {"transactions": [name]})
    back = upgraded(world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})["overlay"])
    assert back is not None
    assert [(item.name, item.before) for item in back.notable] == [("tool", "3")]


def test_a_package_of_a_foreign_architecture_has_the_name_that_the_sensor_asks_for(world: World) -> None:
    world.say("dpkg", "1.21.22", architecture="amd64")
    for architecture, name in (("i386", "foreign:i386"), ("amd64", "home"), ("all", "every")):
        package = name.partition(":")[0]
        path = f"/usr/bin/{package}"
        deb = build(world.top, package, "1", {path: "x\n"}, architecture=architecture)
        transaction = world.transaction(deb)
        world.install(deb)
        world.ask("prepare", {"transactions": [transaction]})
        answer = world.ask("explain", {"transactions": [transaction], "held": [], **world.judged_by()})
        over = upgraded(answer["overlay"])
        assert over is not None
        assert name in [item.name for item in over.notable]
        asked: list[str] = []

        def came(subject: str, asked: list[str] = asked) -> None:
            asked.append(subject)

        list(Packages(Context(root=str(world.root), came=came)).observe(1))
        assert name in asked


def test_a_foreign_package_that_dpkg_takes_away(world: World) -> None:
    world.say("dpkg", "1.21.22", architecture="amd64")
    deb = build(world.top, "foreign", "1", {"/usr/bin/foreign": "x\n"}, architecture="i386")
    name = world.transaction(deb)
    world.install(deb)
    world.ask("prepare", {"transactions": [name]})
    world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    name = world.transaction()
    (world.spool / name / "apt").unlink()
    (world.spool / name / "dpkg").write_bytes(b"remove\0--remove\0foreign:i386")
    (world.root / "usr/bin/foreign").unlink()
    world.say("foreign", "1", "config-files", "i386")
    world.ask("prepare", {"transactions": [name]})
    over = upgraded(world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})["overlay"])
    assert over is not None
    assert over.notable == ()


class Stranger:
    """A package of the intruder's own, installed and told, with a program that nobody knew."""

    PATH = "/usr/bin/backdoor"

    def __init__(self, world: World, name: str = "evil", path: str = PATH) -> None:
        self.world = world
        self.deb = build(world.top, name, "1", {path: "evil\n", TOOL: "evil\n"})
        transaction = world.transaction(self.deb)
        world.install(self.deb)
        self.layers, self.notable = world.judge(transaction)

    @property
    def known(self) -> bool:
        return self.layers.lookup(self.PATH.encode()) is not None


def test_a_package_of_the_intruders_own_whitewashes_nothing(world: World) -> None:
    stranger = Stranger(world)
    assert stranger.known, "one finding for all files that are its own"
    assert [item.name for item in stranger.notable] == ["evil"]
    assert stranger.layers.lookup(TOOL.encode()) is None, "nothing is said of a file that was known"


def test_a_forged_removal_leaves_no_reference_values(world: World) -> None:
    stranger = Stranger(world)
    world.say("evil", "1", "config-files")
    layers, notable = world.judge(world.transaction(removed=("evil",)))
    assert notable == ()
    assert layers.lookup(stranger.PATH.encode()) is None
    assert layers.went(stranger.PATH.encode())


def test_a_signed_package_of_the_same_name_keeps_only_what_it_brings(world: World) -> None:
    stranger = Stranger(world)
    signed = build(world.top, "evil", "2", {"/usr/bin/good": "good\n"})
    world.trust(signed)
    name = world.transaction(signed)
    world.install(signed)
    layers, notable = world.judge(name)
    assert notable == ()
    assert layers.went(stranger.PATH.encode())
    assert layers.lookup(b"/usr/bin/good") is not None


def test_a_signed_package_with_the_same_files_keeps_them(world: World) -> None:
    stranger = Stranger(world)
    signed = build(world.top, "evil", "2", {stranger.PATH: "good\n"})
    world.trust(signed)
    name = world.transaction(signed)
    world.install(signed)
    layers, notable = world.judge(name)
    assert notable == ()
    assert layers.lookup(stranger.PATH.encode()) is not None


@pytest.mark.parametrize("how", ["gone", "changed", "another"])
def test_who_takes_away_what_is_kept_beside_the_overlay_ends_no_finding(world: World, how: str) -> None:
    Stranger(world)
    (kept,) = (world.state / "upgrades").glob("*.past")
    if how == "gone":
        kept.unlink()
    elif how == "changed":
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)
    else:
        old = kept.read_bytes()
        Stranger(world, "worse", "/usr/bin/worse")
        (kept,) = (world.state / "upgrades").glob("*.past")
        kept.write_bytes(old)
    world.say("evil", "1", "config-files")
    for _ in range(2):
        _, notable = world.judge(world.transaction(removed=("evil",)))
        assert "evil" in [item.name for item in notable]


def test_a_removal_that_is_told_once_more_explains_nothing(world: World) -> None:
    (world.root / "usr/bin/guard").write_text("x\n")
    world.ask("learn", {"reason": "again"})
    for path, gone in ((TOOL, True), ("/usr/bin/guard", False)):
        name = world.transaction(removed=("tool",))
        (world.spool / name / "owned.tool.list").write_text(path + "\n")
        (world.root / path[1:]).unlink()
        world.say("tool", "2", "not-installed")
        layers, _ = world.judge(name)
        assert layers.went(path.encode()) is gone


def test_a_transaction_without_a_package_explains_nothing(world: World) -> None:
    world.trust(*world.debs.values())
    (world.root / "usr/lib/udev").mkdir(parents=True)
    (world.root / "usr/lib/udev/hwdb.bin").write_text("x\n")
    held = [[b"/usr/lib/udev/hwdb.bin", BY_DPKG]]
    name = world.transaction()
    world.ask("prepare", {"transactions": [name]})
    answer = world.ask("explain", {"transactions": [name], "held": held, **world.judged_by()})
    assert answer["derived"] == 0
    assert world.bring("3", held)["derived"] == 1


def test_what_is_not_as_signed_is_to_be_looked_at(world: World) -> None:
    world.trust(*world.debs.values())
    name = world.transaction(world.debs["3"], before={"tool": "2"})
    world.ask("prepare", {"transactions": [name]})
    world.say("tool", "3")  # dpkg says so, and the file is still the old one
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    assert answer["look"] == [TOOL.encode()]
    assert world.lookup(answer, TOOL).digest == hashlib.sha256(b"tool 3\n").digest()


@pytest.mark.parametrize("part", ["overlay", "egm"])
def test_one_that_was_changed_does_not_count(world: World, part: str) -> None:
    world.trust(*world.debs.values())
    world.bring("3")
    (path,) = [path for path in (world.state / "upgrades").iterdir() if path.name == part or (path.suffix == f".{part}"
               and len(path.name) == 68)]  # fmt: skip
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    public = trust_of(world.settings).key.public
    with pytest.raises(DecodeError):
        overlay.load(str(world.state), public, world.judged_by()["manifest"][0])
    assert world.ask("load", {})["overlay"] is None


def test_learning_anew_ends_it(world: World) -> None:
    world.trust(*world.debs.values())
    world.bring("3")
    (world.root / "usr/bin/else").write_text("so that the list of files is another")
    world.ask("learn", {"reason": "again"})
    assert world.ask("load", {})["overlay"] is None


def test_what_was_accepted_before_a_package_changed_it_no_longer_counts(world: World) -> None:
    world.trust(*world.debs.values())
    columns = {"type": "file", "sha256": b"a" * 32, "size": 3}
    world.ask("rebase", {"accept": [["file", to_plain(TOOL), columns_to_plain(columns)]], "note": ""})
    over = upgraded(world.bring("3")["overlay"])
    assert over is not None
    judging: Any = Judging.__new__(Judging)
    judging.upgraded = over
    assert judging.superseded(TOOL, columns)
    assert not judging.superseded(TOOL, {**columns, "size": 4}), "what is accepted afterwards counts"
    assert not judging.superseded("/usr/bin/other", columns)


def test_what_a_package_changed_is_not_put_back(world: World) -> None:
    trust = trust_of(world.settings)
    baseline = world.store.current(trust.trusted, trust.device, 2**41)
    assert baseline is not None
    assert not packages_changed(world.settings, baseline, TOOL)
    world.trust(*world.debs.values())
    world.bring("3")
    assert packages_changed(world.settings, baseline, TOOL)
    assert not packages_changed(world.settings, baseline, "/etc/passwd")
    Path(overlay.place(str(world.state))).write_bytes(b"nonsense")
    with pytest.raises(RemediationRefused):
        packages_changed(world.settings, baseline, TOOL)


def test_an_unreadable_transaction_is_refused_by_name(world: World) -> None:
    name = "0" * 20 + "-1"
    (world.spool / name).mkdir()
    os.mkfifo(world.spool / name / "apt")
    (refused, why) = world.ask("prepare", {"transactions": [name]})["refused"]
    assert refused == name
    assert "regular" in why


def test_settings_that_a_package_brought_can_be_compared_later(world: World, tmp_path: Path) -> None:
    (world.top / "policy/10.toml").write_text(POLICY + "diff = true\nnodiff = ['**/*.key']\n")
    assert world.ask("rebase", {"policy": True, "note": ""})["revision"] == 2
    files = {"/etc/more.conf": "x = 1\n", "/etc/more.key": "a key\n", "/usr/bin/more": "m\n"}
    more = build(tmp_path, "more", "1", files)
    world.trust(*world.debs.values(), more)
    name = world.transaction(more)
    world.install(more)
    assert world.ask("prepare", {"transactions": [name]})["prepared"] == name
    answer = world.ask("explain", {"transactions": [name], "held": [], **world.judged_by()})
    assert world.lookup(answer, "/etc/more.conf") is not None
    kept = {path.read_text() for path in (world.state / "vault").iterdir()}
    assert "x = 1\n" in kept
    assert not kept & {"a key\n", "m\n"}
