"""What lies on the disk against what packages brought: real .debs, unpacked below a directory, then tampered with."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeguard.codec.digests import Algorithm, swift
from edgeguard.codec.layers import GONE, Layers
from edgeguard.codec.manifest import Entry, Reader
from edgeguard.daemon.upgrading import blocks_of
from edgeguard.errors import DecodeError
from edgeguard.upgrades import archive, deb, expected, judge, overlay, transactions
from edgeguard.upgrades.archive import Vouching
from edgeguard.upgrades.judge import Judge, Pending, Tally
from tests import lent
from tests.unit.upgrades.debs import WATCHES, Home, needs_dpkg
from tests.unit.upgrades.debs import deb as build

pytestmark = needs_dpkg
TOOL, CONF, SUID, LINK = "/usr/bin/tool", "/etc/tool.conf", "/usr/bin/power", "/usr/bin/t"


class World(Home):
    """A device with version 1 of a package, learned, and version 2 ready to be installed."""

    def __init__(
        self,
        top: Path,
        monkeypatch: pytest.MonkeyPatch,
        word: str = archive.ARCHIVE,
        algorithm: Algorithm = Algorithm.SHA256,
    ) -> None:
        super().__init__(top)
        self.algorithm = algorithm
        self.monkeypatch = monkeypatch
        self.word = word
        monkeypatch.setattr(
            archive, "vouch", lambda _root, _places, digests: Vouching(dict.fromkeys(digests, self.word), ())
        )
        self.one, self.two = (self.version(top, number) for number in ("1", "2"))
        self.install(self.one)
        self.base = self.learn()
        self.known: dict[str, str] | None = {"tool": "1"}
        self.gone: dict[str, int] = {}

    @staticmethod
    def version(top: Path, number: str) -> Path:
        files = {TOOL: f"tool {number}\n", CONF: f"conf {number}\n", SUID: f"power {number}\n"}
        files[f"/usr/lib/tool/only{number}"] = "x\n"
        return build(
            top, "tool", number, files, conffiles=CONF + "\n", modes={TOOL: 0o755, SUID: 0o4755}, links={LINK: "tool"}
        )

    def learn(self) -> Reader:
        paths: dict[bytes, Entry] = {}
        eye = Judge(str(self.root), WATCHES, None, 1 << 30)
        eye.eye.digester = swift(self.algorithm)
        for above, _, files in os.walk(self.root):
            for name in files:
                path = os.fsencode(f"{above}/{name}")[len(os.fsencode(str(self.root))) :]
                watch = eye.plan.decide(os.fsdecode(path))
                if watch is not None and watch.only != "setid" and (seen := eye.look(path, watch)) is not None:
                    paths[path] = seen
        target = str(self.state / "base.egm")
        expected.write(target, paths, self.algorithm)
        return lent.manifest(target)

    def judged(self, *names: str, brought: Mapping[bytes, str] | None = None) -> tuple[Layers, list[Tally]]:
        """The reference values afterwards, and what was counted."""
        pending = []
        for name in names:
            try:
                found = expected.load(str(self.state), name)
            except FileNotFoundError:
                found = expected.prepare(str(self.state), str(self.spool), name, str(self.root), self.algorithm)
            pending.append(Pending(found, lent.manifest(transactions.manifest_of(str(self.state), name))))
        tallies: list[Tally] = []
        self.eye = Judge(str(self.root), WATCHES, self.base, 1 << 30, brought, self.known, self.gone)
        digest, _ = overlay.write_manifest(str(self.state), self.eye.run(pending, tallies), algorithm=self.algorithm)
        if self.eye.moved:
            new = lent.manifest(overlay.manifest_path(str(self.state), digest))
            digest, _ = overlay.write_manifest(
                str(self.state), new.blocks(), blocks_of(self.eye.moved), algorithm=self.algorithm
            )
        self.owners = [owner for item in pending for owner in item.expected.owners]
        top = lent.manifest(overlay.manifest_path(str(self.state), digest))
        return Layers(self.base, top), tallies

    def upgrade(self) -> str:
        name = self.transaction(self.two, before={"tool": "1"})
        expected.prepare(  # before anything is unpacked
            str(self.state), str(self.spool), name, str(self.root), self.algorithm
        )
        self.install(self.two)
        return name

    def differs(self, layers: Layers, path: str) -> bool:
        """Would a look at this path now be a finding?"""
        watch = self.eye.plan.decide(path)
        assert watch is not None
        return self.eye.look(path.encode(), watch) != layers.lookup(path.encode())


@pytest.fixture(params=Algorithm)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> World:
    """Whatever digests the baseline has, packages are judged alike."""
    return World(tmp_path, monkeypatch, algorithm=request.param)


def test_an_upgrade_is_explained(world: World) -> None:
    name = world.upgrade()
    (world.root / "usr/lib/tool/only1").unlink()
    layers, (tally,) = world.judged(name)
    for path in (TOOL, CONF, SUID, LINK, "/usr/lib/tool/only2"):
        assert not world.differs(layers, path), path
    assert layers.lookup(b"/usr/lib/tool/only1") is None
    assert (tally.other, tally.missed, tally.removed) == (0, 0, 1)
    text = judge.summed(world.owners[0], tally)
    assert text == "tool 1 → 2: 5 files, all as signed by the archive, 1 gone"


@pytest.mark.parametrize("what", ["content", "mode", "link", "missing", "old"])
def test_what_was_slipped_in_differs(world: World, what: str) -> None:
    name = world.upgrade()
    tool = world.root / TOOL[1:]
    if what == "content":
        tool.write_text("evil\n")
    elif what == "mode":
        tool.chmod(0o4755)
    elif what == "link":
        tool.unlink()
        tool.symlink_to("/tmp/x")
    elif what == "missing":
        tool.unlink()
    else:
        tool.write_text("tool 1\n")  # the weak version that the baseline knows
    layers, (tally,) = world.judged(name)
    assert world.differs(layers, TOOL)
    assert tally.others == [TOOL.encode()]
    assert "4 of 5 files as signed by the archive, 1 not" in judge.summed(world.owners[0], tally)


def test_a_package_that_went_and_did_not_come_back(world: World) -> None:
    """Purged, then an installation that failed: what is gone is gone by the first."""
    first = world.transaction(removed=("tool",))
    second = world.transaction(world.two)
    (world.root / TOOL[1:]).unlink()
    world.say("tool", "1", "config-files")
    layers, _ = world.judged(first, second)
    assert layers.lookup(TOOL.encode()) is None


def test_a_link_that_leads_elsewhere_differs(world: World) -> None:
    name = world.upgrade()
    (world.root / LINK[1:]).unlink()
    (world.root / LINK[1:]).symlink_to("/tmp/evil")
    layers, _ = world.judged(name)
    assert world.differs(layers, LINK)


def test_later_tampering_and_a_way_back_differ(world: World) -> None:
    layers, _ = world.judged(world.upgrade())
    (world.root / TOOL[1:]).write_text("tool 1\n")
    assert world.differs(layers, TOOL)


def test_settings_that_dpkg_kept(world: World) -> None:
    name = world.upgrade()
    (world.root / CONF[1:]).write_text("conf 1\n")
    layers, (tally,) = world.judged(name)
    assert not world.differs(layers, CONF)
    assert tally.kept == 1
    (world.root / CONF[1:]).write_text("backdoor\n")
    layers, _ = world.judged(name)
    assert world.differs(layers, CONF)


def test_a_package_that_did_not_come_to_be_installed(world: World) -> None:
    name = world.transaction(world.two, before={"tool": "1"})
    layers, (tally,) = world.judged(name)
    assert not world.differs(layers, TOOL), "the old file is right as long as the old package is there"
    assert tally.missed
    assert "did not come to be installed" in judge.summed(world.owners[0], tally)


def test_an_old_signed_file_comes_back_without_its_package(world: World) -> None:
    """Its .deb, which an archive signed, is laid into the spool; dpkg never runs."""
    world.upgrade()
    world.base = world.learn()
    name = world.transaction(world.one)
    for path, mode in ((TOOL, 0o755), (SUID, 0o4755)):
        (world.root / path[1:]).write_text(f"{Path(path).name} 1\n")
        (world.root / path[1:]).chmod(mode)
    layers, (tally,) = world.judged(name)
    assert world.differs(layers, TOOL)
    assert world.differs(layers, SUID)
    assert not tally.stood
    assert not world.eye.vouched, "nor is a copy of its files right"


def test_a_package_whose_installation_broke_off(world: World) -> None:
    name = world.upgrade()
    world.say("tool", "2", "half-installed")
    layers, _ = world.judged(name)
    assert world.differs(layers, TOOL)
    again = world.transaction(world.two)
    world.install(world.two)
    layers, _ = world.judged(name, again)
    assert not world.differs(layers, TOOL)


def test_rights_that_were_right_before_are_right_afterwards(world: World) -> None:
    (world.root / SUID[1:]).chmod(0o4750)  # an administrator's dpkg-statoverride, learned
    world.base = world.learn()
    name = world.upgrade()
    (world.root / SUID[1:]).chmod(0o4750)
    layers, (tally,) = world.judged(name)
    assert not world.differs(layers, SUID)
    assert tally.other == 0


def test_rights_that_a_signed_script_gives(world: World, tmp_path: Path) -> None:
    files = {"/usr/bin/helper": "x\n", "/usr/bin/other": "x\n"}
    script = "#!/bin/sh\nchmod 4754 /usr/bin/helper\n"
    package = build(tmp_path, "help", "1", files, postinst=script, modes=dict.fromkeys(files, 0o755))
    name = world.transaction(package)
    world.install(package)
    for path in files:
        (world.root / path[1:]).chmod(0o4754)
    layers, _ = world.judged(name)
    assert not world.differs(layers, "/usr/bin/helper")
    assert world.differs(layers, "/usr/bin/other")


BASE_FILES = rb"""
install_directory() {
    chown "root:$3" "$DPKG_ROOT/$1"
    chmod "$2" "$DPKG_ROOT/$1"
}
  install_directory tmp 1777 root
  install_directory var/tmp 1777 root
    chmod 2775 "$DPKG_ROOT$1" 2> /dev/null || true
  ensure_file_owner_mode /var/log/wtmp root:utmp 664
  if [ -e "$DPKG_ROOT/etc/staff-group-for-usr-local" ] || [ -x /usr/bin/perl ]; then :; fi
"""


@pytest.mark.parametrize(
    ("script", "path", "mode", "given"),
    [
        (BASE_FILES, "/etc", 0o1777, False),
        (BASE_FILES, "/etc", 0o2775, False),
        (BASE_FILES, "/usr/bin", 0o1777, False),
        (BASE_FILES, "/usr/bin", 0o2775, False),
        (BASE_FILES, "/var/tmp", 0o1777, True),
        (BASE_FILES, "/var/log/wtmp", 0o664, True),
        (BASE_FILES, "/home/x/tmp/wtmp", 0o664, False),
        (b"dpkg-statoverride --update --add root root 710 /etc/ssl/private", "/etc/ssl/private", 0o710, True),
        (b"chmod 1730 $crondir/crontabs", "/var/spool/cron/crontabs", 0o1730, True),
        (b"chmod 1730 $crondir/crontabs.old", "/var/spool/cron/crontabs", 0o1730, False),
        (b"install -d -o root -m 0755 \\\n  /var/cache/man", "/var/cache/man", 0o755, True),
        (b"chmod 4755 /usr/bin/helper", "/usr/bin/helper", 0o4755, True),
        (b"chmod 4755 /usr/bin/helper/*", "/usr/bin/helper", 0o4755, False),
        (b"chmod 4755 $dir/helper", "/usr/bin/helper", 0o4755, False),
        (b"# chmod 4755 /usr/bin/helper", "/usr/bin/helper", 0o4755, False),
        (b"chmod 4755 /bin/helper", "/usr/bin/helper", 0o4755, True),
        (b"chmod 4755 /usr/bin/other\ntest -x /usr/bin/helper", "/usr/bin/helper", 0o4755, False),
    ],
)
def test_a_mode_and_its_path_stand_in_one_line(world: World, script: bytes, path: str, mode: int, given: bool) -> None:
    eye = Judge(str(world.root), WATCHES, None, 1 << 30)
    wanted = Entry(0o100600, 0, 0, 0, "program")
    seen = wanted._replace(st_mode=0o100000 | mode)
    assert eye._given(script, path.encode(), wanted, seen) is given


@pytest.mark.parametrize(
    ("script", "path", "given"),
    [
        (b"if setcap cap_net_raw+ep /bin/ping; then", "/usr/bin/ping", True),
        (b"setcap cap_net_raw+ep $dir/ping", "/usr/bin/ping", True),
        (b"setcap cap_net_raw+ep /bin/ping6", "/usr/bin/ping", False),
        (b"P=$(dpkg-divert --truename /usr/bin/ping)\nif setcap cap_net_raw+ep $P; then", "/usr/bin/ping", True),
        (b'P="/bin/ping"\n\nsetcap cap_net_raw+ep "${P}"', "/usr/bin/ping", True),
        (b"P=/usr/bin/ping6\nsetcap cap_net_raw+ep $P", "/usr/bin/ping", False),
        (b"P=/usr/bin/ping\nsetcap cap_net_raw+ep $PP", "/usr/bin/ping", False),
        (b"# P=/usr/bin/ping\nsetcap cap_net_raw+ep $P", "/usr/bin/ping", False),
        (b"setcap cap_net_raw+ep /bin/other\n: /bin/ping", "/usr/bin/ping", False),
        (b"setcap cap_net_raw+ep /opt/bin/ping", "/usr/bin/ping", False),
    ],
)
def test_capabilities_that_a_signed_script_gives(script: bytes, path: str, given: bool) -> None:
    assert judge.gives_capabilities(script, path.encode()) is given


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody else")
def test_an_owner_that_a_signed_script_gives(world: World, tmp_path: Path) -> None:
    (world.root / "etc/group").write_text("root:x:0:\ngame:x:60:\nevil:x:61:\n")
    script = "#!/bin/sh\nchgrp game /usr/bin/play\nchmod 2755 /usr/bin/play\n"
    package = build(tmp_path, "play", "1", {"/usr/bin/play": "x\n"}, postinst=script)
    name = world.transaction(package)
    world.install(package)
    os.chown(world.root / "usr/bin/play", 0, 60)
    (world.root / "usr/bin/play").chmod(0o2755)
    layers, _ = world.judged(name)
    assert not world.differs(layers, "/usr/bin/play")
    os.chown(world.root / "usr/bin/play", 0, 61)
    (world.root / "usr/bin/play").chmod(0o2755)
    layers, _ = world.judged(name)
    assert world.differs(layers, "/usr/bin/play")


def test_an_override_gives_rights_but_no_setid(world: World) -> None:
    stats = (world.root / TOOL[1:]).stat()
    name = world.upgrade()
    override = world.root / "var/lib/dpkg/statoverride"
    override.write_text(f"#{stats.st_uid} #{stats.st_gid} 700 {TOOL}\n")
    (world.root / TOOL[1:]).chmod(0o700)
    layers, _ = world.judged(name)
    assert not world.differs(layers, TOOL)
    override.write_text(f"#{stats.st_uid} #{stats.st_gid} 4755 {TOOL}\n")
    (world.root / TOOL[1:]).chmod(0o4755)
    layers, _ = world.judged(name)
    assert world.differs(layers, TOOL)


DIVERT = "dpkg-divert --package other --divert %s.real --rename --add %s\n"


@pytest.mark.parametrize(
    ("how", "believed"),
    [
        ("a package's known script", True),
        ("a script of the same transaction", True),
        ("it was there before", True),
        ("the administrator, meanwhile", False),
        ("a script that was changed", False),
        ("a script that does not say so", False),
        ("nobody", False),
    ],
)
def test_a_diverted_file(world: World, tmp_path: Path, how: str, believed: bool) -> None:
    script = world.root / "var/lib/dpkg/info/other.postinst"
    said = "true\n" if how == "a script that does not say so" else DIVERT % (TOOL, TOOL)
    names = []
    if how == "a script of the same transaction":
        other = build(tmp_path, "other", "1", {"/usr/lib/other": "x\n"}, postinst=said)
        names.append(world.transaction(other))
        world.install(other)
    elif how not in ("nobody", "it was there before"):
        script.write_text(said)
        world.say("other", "1")
    if how == "it was there before":
        (world.root / f"{TOOL[1:]}.real").write_text("tool 1\n")
        world.say("other", "1")
    world.base = world.learn()
    if how == "a script that was changed":
        script.write_text(said + "true\n")
    names.append(world.upgrade())
    by = ":" if how == "the administrator, meanwhile" else "other"
    (world.root / "var/lib/dpkg/diversions").write_text(f"{TOOL}\n{TOOL}.real\n{by}\n")
    (world.root / TOOL[1:]).rename(world.root / f"{TOOL[1:]}.real")
    (world.root / TOOL[1:]).write_text("tool 1\n")
    (world.root / TOOL[1:]).chmod(0o755)
    layers, tallies = world.judged(*names)
    assert world.differs(layers, f"{TOOL}.real") is not believed
    assert world.differs(layers, TOOL) is not believed, "the old program, kept by a diversion that nobody vouches for"
    assert tallies[-1].other == (not believed)


def test_a_path_that_dpkg_is_told_to_leave_out(world: World) -> None:
    (world.root / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True)
    (world.root / "etc/dpkg/dpkg.cfg.d/small").write_text("path-exclude=/usr/lib/tool/*\n")
    name = world.upgrade()
    (world.root / "usr/lib/tool/only2").unlink()
    layers, (tally,) = world.judged(name)
    assert layers.lookup(b"/usr/lib/tool/only2") is None
    assert tally.other == 0


def test_the_newest_transaction_decides(world: World) -> None:
    first = world.upgrade()
    second = world.transaction(world.one, before={"tool": "2"})
    world.install(world.one)
    layers, _ = world.judged(first, second)
    assert not world.differs(layers, TOOL)
    (world.root / TOOL[1:]).write_text("tool 2\n")
    layers, _ = world.judged(first, second)
    assert world.differs(layers, TOOL), "what the older one brought is no longer right"


def test_a_package_that_goes(world: World) -> None:
    name = world.transaction(removed=("tool",))
    for path in (TOOL, CONF):
        (world.root / path[1:]).unlink()
    world.say("tool", "1", "config-files")
    layers, (tally,) = world.judged(name)
    assert layers.lookup(TOOL.encode()) is None
    assert world.differs(layers, TOOL) is False
    assert layers.lookup(LINK.encode()) is not None, "it is still there"
    assert tally.removed == 2
    assert judge.summed(world.owners[0], tally) == "tool 1 removed: 2 files gone"


MADE = "/etc/cron.d/tool"


@pytest.mark.parametrize(
    ("how", "explained"),
    [
        ("as known", True),
        ("another script", False),  # than this device knew
        ("no script", False),
        ("stands", False),
        ("listed", False),  # by another package, which is still there
        ("not named", False),
        ("nobody", False),  # vouches for the package
        ("came again", False),
    ],
)
def test_what_a_postrm_takes_along(world: World, tmp_path: Path, how: str, explained: bool) -> None:
    """Settings that a script of the package made are in no list; its postrm names them, and this device knew it."""
    postrm = world.root / "var/lib/dpkg/info/tool.postrm"
    postrm.write_text(f"#!/bin/sh\nJOB={MADE}\nrm -f {'/etc/other' if how == 'not named' else '$JOB'}\n")
    (world.root / "etc/cron.d").mkdir()
    (world.root / MADE[1:]).write_text("job\n")
    if how == "listed":
        world.install(build(tmp_path, "cron", "1", {MADE: "job\n"}))
    world.base = world.learn()
    if how == "another script":
        postrm.write_text(f"rm -f {MADE} /etc/passwd\n")
    elif how == "no script":
        postrm.unlink()
    name = world.transaction(removed=("tool",))
    if how != "came again":
        (world.root / MADE[1:]).unlink()
    if how != "stands":
        world.say("tool", "1", "not-installed")
        postrm.unlink(missing_ok=True)
    brought = {b"/var/lib/dpkg/info/tool.postrm": "tool"} if how == "nobody" else None
    layers, _ = world.judged(name, brought=brought)
    assert (layers.lookup(MADE.encode()) is None) is explained
    assert world.differs(layers, MADE) is (not explained and how != "came again")


def test_what_the_postrm_of_a_package_that_goes_says_gives_no_rights(world: World) -> None:
    """It is only known; scripts that make or give something are signed."""
    (world.root / "var/lib/dpkg/info/tool.postrm").write_text("rm -f /etc/made\nchmod 4755 /usr/bin/tool\n")
    world.base = world.learn()
    name = world.transaction(removed=("tool",))
    world.say("tool", "1", "not-installed")
    world.judged(name)
    assert (world.eye.scripts, world.eye.signed_scripts) == (b"", {})


@pytest.mark.parametrize("how", ["installed", "unknown", "again", "same"])
def test_a_removal_that_is_only_said(world: World, how: str) -> None:
    """The spool says that the package goes, with a list; it did not go, never was here, or went long ago."""
    if how == "same":  # its own .deb once more, which takes nothing away
        name = world.transaction(world.one)
        (world.spool / name / "owned.tool.list").write_text("/usr/lib/tool/alien\n")
        (world.root / "usr/lib/tool/alien").write_text("x\n")
        world.base = world.learn()
        (world.root / "usr/lib/tool/alien").unlink()
        layers, _ = world.judged(name)
        assert layers.lookup(b"/usr/lib/tool/alien") is not None
        return
    name = world.transaction(removed=("tool",))
    (world.root / TOOL[1:]).unlink()
    if how != "installed":
        world.say("tool", "1", "not-installed")
    world.known = {} if how == "unknown" else {"tool": "1"}
    world.gone = {"tool": 1} if how == "again" else {}
    layers, (tally,) = world.judged(name)
    assert world.differs(layers, TOOL)
    assert not tally.stood
    assert "not believed" in judge.summed(world.owners[0], tally)
    world.known = None
    layers, _ = world.judged(name)
    assert world.differs(layers, TOOL) is (how != "unknown"), "where nobody learned packages, dpkg's word has to do"


def test_a_transaction_did_not_begin_before_its_directory(world: World) -> None:
    name = world.transaction(removed=("tool",))
    forged = "00000000000000000001-0"
    (world.spool / name).rename(world.spool / forged)
    began = transactions.read(str(world.spool), forged).began
    assert 0 <= time.time() * 1000 - began < 90_000
    name = world.transaction(removed=("tool",))
    assert transactions.read(str(world.spool), name).began == int(name[:20]) // 1_000_000


def test_what_another_package_brought_may_not_go(world: World) -> None:
    (world.root / "usr/bin/alien").write_text("x")
    world.base = world.learn()
    name = world.transaction(removed=("tool",))
    (world.root / "usr/bin/alien").unlink()
    layers, _ = world.judged(name)
    assert layers.lookup(b"/usr/bin/alien") is not None


@pytest.mark.parametrize(("status", "explained"), [("installed", False), ("config-files", True)])
def test_a_list_of_files_that_names_what_is_anothers(
    world: World, tmp_path: Path, status: str, explained: bool
) -> None:
    """Root writes another's file into the list of a package that goes: dpkg takes it away, and it is told."""
    guard = build(tmp_path, "guard", "1", {"/usr/bin/alarm": "x\n"})
    world.install(guard)
    world.say("guard", "1", status)
    world.base = world.learn()
    with (world.root / "var/lib/dpkg/info/tool.list").open("a") as file:
        file.write("/bin/alarm\n" if (world.root / "bin").is_symlink() else "/usr/bin/alarm\n")
    name = world.transaction(removed=("tool",))
    for path in (TOOL, "/usr/bin/alarm"):
        (world.root / path[1:]).unlink()
    world.say("tool", "1", "not-installed")
    layers, _ = world.judged(name)
    assert not world.differs(layers, TOOL)
    assert world.differs(layers, "/usr/bin/alarm") is not explained


def test_programs_with_other_rights_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, word=archive.NOBODY)
    package = build(
        tmp_path, "evil", "1", {"/usr/bin/root": "x\n", "/usr/bin/fine": "x\n"}, modes={"/usr/bin/root": 0o4755}
    )
    name = world.transaction(package)
    world.install(package)
    layers, (tally,) = world.judged(name)
    assert layers.lookup(b"/usr/bin/root") is None
    assert not world.differs(layers, "/usr/bin/fine")
    assert tally.setid == 1
    assert "which no archive vouches for" in judge.summed(world.owners[0], tally)


@pytest.mark.parametrize("installed", [True, False])
def test_a_package_of_the_intruders_own_says_nothing_of_known_files(
    world: World, tmp_path: Path, installed: bool
) -> None:
    world.word = archive.NOBODY
    files = {TOOL: "evil\n", "/usr/bin/fresh": "x\n"}
    package = build(tmp_path, "evil", "1", files, modes={TOOL: 0o755})
    name = world.transaction(package)
    world.install(package)
    if not installed:
        world.say("evil", "1", "not-installed")
    layers, (tally,) = world.judged(name)
    assert world.differs(layers, TOOL)
    assert world.differs(layers, "/usr/bin/fresh") is not installed
    assert tally.stood is installed
    programs = {path: name for path, name in world.eye.brought.items() if path.startswith(b"/usr/bin/")}
    assert programs == ({b"/usr/bin/fresh": "evil"} if installed else {})
    if installed:
        assert tally.known == 1
        assert "1 known before and not believed" in judge.summed(world.owners[0], tally)


def test_a_package_that_nobody_vouches_for_may_come_again(world: World, tmp_path: Path) -> None:
    """A newer version of it says what its own files are; another one's package does not."""
    world.word = archive.NOBODY
    world.install(build(tmp_path, "own", "1", {"/usr/bin/own": "1\n"}))
    world.base = world.learn()
    package = build(tmp_path, "own", "2", {"/usr/bin/own": "2\n"})
    name = world.transaction(package)
    world.install(package)
    layers, _ = world.judged(name, brought={b"/usr/bin/own": "own"})
    assert not world.differs(layers, "/usr/bin/own")
    layers, _ = world.judged(name, brought={b"/usr/bin/own": "other"})
    assert world.differs(layers, "/usr/bin/own")
    world.word = archive.ARCHIVE
    (world.state / f"upgrades/{name}.cbor").unlink()
    layers, _ = world.judged(name, brought={b"/usr/bin/own": "own"})
    assert not world.differs(layers, "/usr/bin/own")
    assert world.eye.brought == {}, "now it is of a package that somebody vouches for"


def test_what_nobody_vouches_for_brings_only_so_many(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "BROUGHT_MAX", 124)
    world.word = archive.NOBODY
    package = build(tmp_path, "many", "1", {f"/usr/bin/{number:030d}": "x\n" for number in range(9)})
    name = world.transaction(package)
    world.install(package)
    _, (tally,) = world.judged(name)
    programs = [path for path in world.eye.brought if path.startswith(b"/usr/bin/")]
    assert len(programs) == 2
    assert tally.known == 7


def test_rights_that_the_script_of_a_stranger_gives(world: World, tmp_path: Path) -> None:
    world.word = archive.NOBODY
    script = "#!/bin/sh\nchmod 4755 /usr/bin/su2\nchmod 640 /usr/bin/own\n"
    package = build(tmp_path, "own", "1", {"/usr/bin/su2": "x\n", "/usr/bin/own": "x\n"}, postinst=script)
    name = world.transaction(package)
    world.install(package)
    (world.root / "usr/bin/su2").chmod(0o4755)
    (world.root / "usr/bin/own").chmod(0o640)
    layers, (tally,) = world.judged(name)
    assert layers.lookup(b"/usr/bin/su2") is None
    assert tally.setid == 1
    assert not world.differs(layers, "/usr/bin/own")


def test_directories_that_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    (world.root / "bin").symlink_to("usr/bin")
    package = build(tmp_path, "merged", "1", {"/bin/merged": "x\n"})
    name = world.transaction(package)
    (world.root / "usr/bin/merged").write_text("x\n")
    (world.root / "usr/bin/merged").chmod(0o644)
    world.say("merged", "1")
    layers, _ = world.judged(name)
    assert not world.differs(layers, "/usr/bin/merged")


def test_a_script_of_a_package(world: World, tmp_path: Path) -> None:
    package = build(tmp_path, "scripted", "1", {"/usr/bin/s": "x\n"}, postinst="#!/bin/sh\nexit 0\n")
    name = world.transaction(package)
    world.install(package)
    script = world.root / "var/lib/dpkg/info/scripted.postinst"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    layers, _ = world.judged(name)
    reference = layers.lookup(b"/var/lib/dpkg/info/scripted.postinst")
    assert reference is not None
    if os.geteuid() == 0:
        assert not world.differs(layers, "/var/lib/dpkg/info/scripted.postinst")
    script.write_text("#!/bin/sh\nevil\n")
    assert world.differs(layers, "/var/lib/dpkg/info/scripted.postinst")


def test_a_hard_link_is_what_it_links_to(tmp_path: Path) -> None:
    def link(tree: Path) -> None:
        os.link(tree / "usr/bin/a", tree / "usr/bin/b")

    package = build(tmp_path, "hard", "1", {"/usr/bin/a": "same\n"}, prepare=link)
    found = {member.path: member for member in deb.Package(str(package)).members(swift(Algorithm.SHA256))}
    assert found[b"/usr/bin/a"].digest == found[b"/usr/bin/b"].digest != b""


@pytest.mark.parametrize("data", [b"", b"!<arch>\n", b"x" * 5000])
def test_what_is_no_package(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(data)
    package = deb.Package(str(path))
    with pytest.raises(DecodeError):
        package.control()
    with pytest.raises(DecodeError):
        list(package.members(swift(Algorithm.SHA256)))


def _headers(*infos: tarfile.TarInfo) -> bytes:
    """A tar of these headers; what follows a header that has a content is one block of nothing."""
    return b"".join(info.tobuf(tarfile.GNU_FORMAT) + bytes(512 * (info.size > 0)) for info in infos) + bytes(1024)


def _header(kind: bytes = tarfile.REGTYPE, **more: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo("./a")
    info.type = kind
    for name, value in more.items():
        setattr(info, name, value)
    return info


@pytest.mark.parametrize(
    "headers",
    [
        (_header(uid=1 << 40),),
        (_header(gid=-5),),
        (_header(size=-600),),
        (*[_header(tarfile.GNUTYPE_LONGNAME, size=2)] * 3000, _header()),
    ],
    ids=["user", "group", "size", "about the next"],
)
def test_headers_that_no_package_has(headers: tuple[tarfile.TarInfo, ...]) -> None:
    """An error of this one .deb, not the end of the reading of all."""
    stream = io.BytesIO(_headers(*headers))
    with pytest.raises(DecodeError), deb.untar(stream) as tar:
        list(deb.listed(tar, swift(Algorithm.SHA256)))


def test_an_architecture_becomes_a_part_of_paths() -> None:
    stream = io.BytesIO()
    control = b"Package: ab\nVersion: 1\nArchitecture: b//c\nMulti-Arch: same\n"
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("./control")
        info.size = len(control)
        tar.addfile(info, io.BytesIO(control))
    stream.seek(0)
    with pytest.raises(DecodeError, match="architecture"), deb.untar(stream) as tar:
        deb.controlled(tar)


@pytest.mark.parametrize(
    "line",
    ["//usr/bin/x", "/usr//bin/x", "/" + "a/" * 2000 + "a", "/" + "a/" * 2100 + "a", "/" + "a" * 70_000 + "/b"],
    ids=["at the start", "in it", "deep", "too deep", "too long"],
)
def test_a_line_of_a_list_that_is_no_path(world: World, line: str) -> None:
    """It must not end the judgement of all packages."""
    with (world.root / "var/lib/dpkg/info/tool.list").open("a") as file:
        file.write(f"{line}\n")
    layers, _ = world.judged(world.upgrade())
    assert not world.differs(layers, TOOL)


def test_numbers_of_users_that_no_file_has(world: World) -> None:
    (world.root / "etc/passwd").write_text("root:x:9999999999:0::/:/bin/sh\n")
    (world.root / "var/lib/dpkg/statoverride").write_text(f"#{'9' * 5000} root 755 {TOOL}\n")
    layers, _ = world.judged(world.upgrade())
    assert layers.lookup(TOOL.encode()) is not None


def test_a_package_that_changes_while_it_is_read(world: World) -> None:
    """Else what an archive vouches for would not be what was read."""
    package = deb.Package(str(world.two))
    package.control()
    assert package.sha256 == hashlib.sha256(world.two.read_bytes()).digest()
    world.two.write_bytes(world.one.read_bytes())
    assert list(package.members(swift(Algorithm.SHA256)))
    with pytest.raises(DecodeError, match="changed"):
        _ = package.sha256


def test_a_package_that_is_cut_off(world: World) -> None:
    data = world.two.read_bytes()
    world.two.unlink()
    world.two.write_bytes(data[: len(data) - 200])
    name = world.transaction(world.two, before={"tool": "1"})
    found = expected.prepare(str(world.state), str(world.spool), name, str(world.root))
    assert found.owners == ()
    assert "00000.deb" in found.troubles[0]


def test_gone_is_no_category_of_a_policy() -> None:
    from edgeguard.baseline import source

    assert GONE not in Path(source.__file__).read_text()
