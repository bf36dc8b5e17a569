"""An image is made into a baseline and checked against one: nothing of this machine is read, nothing in it is run, and
what could not be looked at is said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeguard.baseline.document import Baseline, open_trusted
from edgeguard.baseline.image import image_of
from edgeguard.cli.main import main
from edgeguard.codec import cose
from edgeguard.codec.digests import Algorithm, swift
from edgeguard.codec.manifest import Reader
from tests.fuzz.seeds import present_cache

VENDOR = Path(__file__).parents[3] / "packaging/policy.d"
SHADOW = "root:*:19000:0:99999:7:::\npi:!:19000:0:99999:7:::\n"


class World:
    """A small image, a key, and the command line."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.base = base
        self.root = base / "root"
        self._capsys = capsys
        for name in ("etc/ssh", "usr/bin", "usr/lib", "var/lib/dpkg", "root", "home/pi/.ssh"):
            (self.root / name).mkdir(parents=True)
        (self.root / "lib").symlink_to("usr/lib")
        (self.root / "usr/bin/tool").write_bytes(b"\x7fELF of another architecture")
        (self.root / "usr/bin/tool").chmod(0o755)
        (self.root / "usr/lib/os-release").write_text('ID=debian\nIMAGE_ID=pump\nIMAGE_VERSION="2026.11.1"\n')
        (self.root / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/sh\npi:x:1000:1000::/home/pi:/bin/sh\n",
        )
        (self.root / "etc/group").write_text("root:x:0:\npi:x:1000:\n")
        (self.root / "etc/shadow").write_text(SHADOW)
        (self.root / "etc/gshadow").write_text("root:*::\npi:!::\n")
        (self.root / "etc/ssh/sshd_config").write_text("PermitRootLogin no\n")
        (self.root / "var/lib/dpkg/status").write_text(
            "Package: dpkg\nStatus: install ok installed\nArchitecture: armhf\nVersion: 1.21\n\n"
        )
        self.seed = cose.generate_seed()
        (base / "key").write_bytes(self.seed)
        (base / "key.pub").write_text(cose.public_of(self.seed).hex())
        self.file = base / "one.egb"

    def run(self, *words: object) -> int:
        return main([str(word) for word in words])

    def build(self, *more: object, revision: int = 8, policy: object = VENDOR) -> int:
        key = ("--key", self.base / "key")
        chosen = ("--policy", policy) if policy else ()
        where = ("--to", self.file, "--revision", revision)
        return self.run("baseline", "build", "--root", self.root, *key, *chosen, *where, *more)

    def check(self, *more: object) -> int:
        return self.run("scan", "--root", self.root, "--baseline", self.file, *more)

    def json(self, *more: object) -> dict[str, Any]:
        self.said()
        self.code = self.check("-o", "json", *more)
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def said(self) -> str:
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def baseline(self) -> Baseline:
        return open_trusted(self.file.read_bytes(), [cose.public_of(self.seed)])


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(tmp_path, capsys)


def subjects(answer: dict[str, Any]) -> set[str]:
    return {finding["subject"] for finding in answer["findings"]}


def test_what_is_built_of_an_image_finds_it_as_it_should_be(world: World) -> None:
    assert world.build() == 0
    assert "r8 for image pump 2026.11.1" in world.said()
    answer = world.json("--key", world.base / "key.pub")
    assert (world.code, answer["findings"], answer["verdict"]) == (0, [], "OK")
    assert (answer["baseline"], answer["verified"], answer["image"]) == (8, True, "pump 2026.11.1")
    assert {"listener", "process", "usb"} <= set(answer["not_looked_at"])


def test_the_baseline_holds_what_an_image_shows_and_no_more(world: World) -> None:
    world.build()
    baseline = world.baseline()
    assert baseline.references["account"]["user pi"]["password"] == "locked"  # type: ignore[index]
    assert baseline.references["package"] == {"dpkg": {"version": "1.21"}}
    assert baseline.references["sshd"]["permitrootlogin"]
    assert "listener" not in baseline.references
    image = image_of(baseline)
    assert image is not None
    assert image.name == "pump 2026.11.1"
    with open(world.base / "one.egm", "rb") as file:
        assert Reader(file.fileno()).lookup(b"/usr/bin/tool") is not None


def test_a_directory_of_libraries_that_nothing_names_is_found_in_an_image(world: World) -> None:
    (world.root / "etc/ld.so.cache").write_bytes(present_cache("/srv/x/l.so", order=">"))
    world.build()
    assert subjects(world.json()) == {"/srv/x"}


def test_changes_are_found_and_say_so_by_the_exit_code(world: World) -> None:
    world.build()
    (world.root / "usr/bin/tool").write_bytes(b"\x7fELF and a little more")
    (world.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\neve:x:0:0::/root:/bin/sh\n")
    (world.root / "etc/ssh/sshd_config").write_text("PermitRootLogin yes\n")
    (world.root / "home/pi/.ssh/authorized_keys").write_text("not a key\n")
    (world.root / "usr/bin/new").write_bytes(b"new")
    answer = world.json()
    assert {"/usr/bin/tool", "user eve", "permitrootlogin", "/usr/bin/new"} <= subjects(answer)
    assert (world.code, answer["verdict"]) == (2, "CRIT")
    assert world.check() == 2
    assert "CRIT  EG-FILE-002  /usr/bin/tool changed" in world.said()


def test_what_is_gone_is_found(world: World) -> None:
    world.build()
    (world.root / "usr/bin/tool").unlink()
    assert "/usr/bin/tool" in subjects(world.json())


def test_symlinks_of_the_image_lead_to_nothing_of_this_machine(world: World) -> None:
    """Both ways there is a file: what would be read here, and what a system would read that runs from that root."""
    secret, other = world.base / "secret", world.base / "sshd"
    secret.write_text("root::0:0::/root:/bin/sh\nmallory::0:0::/:/bin/sh\n")
    other.write_text("PermitRootLogin yes\n")
    harmless = world.root / str(world.base).lstrip("/")
    harmless.mkdir(parents=True)
    shutil.move(world.root / "etc/passwd", harmless / "secret")
    (world.root / "etc/passwd").symlink_to(secret)
    shutil.move(world.root / "etc/ssh/sshd_config", world.root / "sshd")
    (world.root / "etc/ssh/sshd_config").symlink_to("../../../sshd")
    (world.root / "usr/bin/out").symlink_to(world.base)
    assert world.build() == 0
    baseline = world.baseline()
    assert set(baseline.references["account"]) >= {"user root", "user pi"}
    assert not any("mallory" in subject for subject in baseline.references["account"])
    assert baseline.references["sshd"]["permitrootlogin"]["value"] == "no"  # type: ignore[index]
    with open(world.base / "one.egm", "rb") as file:
        names = {block.directory: block.names for block in Reader(file.fileno()).blocks()}
    assert b"/usr/bin/out" not in names


def test_a_symlink_to_a_directory_is_followed_as_the_device_will(world: World) -> None:
    """/lib -> /usr/lib, absolute: on this machine it would be this machine's."""
    (world.root / "lib").unlink()
    (world.root / "lib").symlink_to("/usr/lib")
    policy = world.base / "policy.toml"
    policy.write_text('[[watch]]\npath = "/lib/os-release"\ncategory = "program"\n')
    assert world.build(policy=policy) == 0
    with open(world.base / "one.egm", "rb") as file:
        assert Reader(file.fileno()).lookup(b"/usr/lib/os-release") is not None


def test_hostile_names_are_told_without_their_bite(world: World) -> None:
    world.build()
    (world.root / "usr/bin" / os.fsdecode(b"a\x1b[31m\n\xff")).write_bytes(b"x")
    world.said()
    assert world.check() == 1
    said = world.said()
    assert "\x1b" not in said
    assert "a\\x1b[31m\\x0a\\xff" in said


def test_fifos_devices_and_circles_hold_nobody(world: World) -> None:
    os.mkfifo(world.root / "usr/bin/fifo")
    (world.root / "etc/shadow").unlink()
    os.mkfifo(world.root / "etc/shadow")
    (world.root / "usr/bin/loop").symlink_to("loop")
    assert world.build() == 1
    assert "/etc/shadow" in world.said()
    assert not world.file.exists()


def test_the_image_brings_its_own_policy(world: World) -> None:
    own = world.root / "etc/edgeguard/policy.d"
    own.mkdir(parents=True)
    (own / "10.toml").write_text('[[watch]]\npath = "/usr/bin"\ncategory = "program"\n')
    (own / "20.toml").symlink_to(world.base / "elsewhere.toml")
    (world.base / "elsewhere.toml").write_text("of this machine = 1")
    assert world.build(policy=None) == 1  # the link leads to nothing in the image
    assert "cannot be read" in world.said()
    (own / "20.toml").unlink()
    (own / "20.toml").symlink_to("/dev/null")
    assert world.build(policy=None) == 0
    assert world.baseline().policy.watches[0].source == "/etc/edgeguard/policy.d/10.toml:1"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--root", "/"), 64, "the system that runs here"),
        (("--root", "{base}/none"), 64, "not a directory"),
        (("--key", "{base}/none"), 3, "no key at"),
        (("--key", "{base}/key.pub"), 1, "not a key"),
        (("--policy", "{base}/none"), 1, "cannot be read"),
        (("--revision", "0"), 64, "from 1"),
        (("--image", "two\nlines"), 64, "one line"),
        (("--to", "/proc/none/x.egb"), 3, "No such file"),
        (("--from", "{base}/key"), 1, "edgeguard"),
    ],
)
def test_wrong_input_is_named_and_writes_nothing(world: World, words: tuple[str, ...], code: int, said: str) -> None:
    assert world.build(*(word.format(base=world.base) for word in words)) == code
    assert said in world.said()
    assert not list(world.base.glob("*.eg*"))


def test_a_full_disk_leaves_what_was_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build()
    before = {path.name: path.read_bytes() for path in world.base.glob("*.eg*")}

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert world.build(revision=9) == 3
    assert "No space left" in world.said()
    assert {path.name: path.read_bytes() for path in world.base.glob("*.eg*")} == before


def test_a_check_says_whom_it_does_not_believe(world: World) -> None:
    world.build()
    (world.base / "other.pub").write_text(cose.public_of(cose.generate_seed()).hex())
    assert world.check("--key", world.base / "other.pub") == 1
    assert "not trusted" in world.said()
    (world.base / "one.egm").write_bytes(b"another")
    assert world.check() == 1
    assert "not the file manifest" in world.said()
    assert world.run("scan", "--root", world.root) == 64
    assert world.run("scan", "--baseline", world.file) == 64


def test_another_image_than_the_baselines_is_said(world: World) -> None:
    world.build()
    (world.root / "usr/lib/os-release").write_text("IMAGE_ID=pump\nIMAGE_VERSION=2026.11.2\n")
    answer = world.json()
    assert answer["other_image"] == "pump 2026.11.2"
    assert world.code >= 1


def test_rules_alone_judge_an_image_that_has_no_baseline(world: World) -> None:
    (world.root / "etc/ssh/sshd_config").write_text("PermitRootLogin yes\n")
    world.said()
    assert world.run("scan", "--root", world.root, "--policy", VENDOR, "-o", "jsonl") == 1
    lines = [json.loads(line) for line in world.said().splitlines() if line.startswith("{")]
    assert [line["subject"] for line in lines[:-1]] == ["permitrootlogin"]
    assert lines[-1]["summary"]["rules_left_out"] > 0


def test_what_a_device_learned_of_ports_goes_into_the_baseline(world: World) -> None:
    world.build()
    learned = world.baseline()
    table = {"tcp/0.0.0.0:22": {"exe": "/usr/sbin/sshd"}}
    learned = learned._replace(references={**learned.references, "listener": table, "package": {"old": {}}})
    (world.base / "learned.egb").write_bytes(learned.to_cbor())
    assert world.build("--from", world.base / "learned.egb", revision=9) == 0
    assert world.baseline().references["listener"] == table
    assert "old" not in world.baseline().references["package"]


def test_the_same_image_gives_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764000000")
    world.build()
    first = (world.file.read_bytes(), (world.base / "one.egm").read_bytes())
    world.build()
    assert (world.file.read_bytes(), (world.base / "one.egm").read_bytes()) == first


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """/usr/bin/tool belongs to somebody else (for root nothing does)."""
    really = os.open

    def closed(path: Any, *words: Any, **more: Any) -> int:
        if path == "tool":
            raise PermissionError(13, "Permission denied", path)
        return really(path, *words, **more)

    monkeypatch.setattr(os, "open", closed)


@pytest.mark.usefixtures("denied")
def test_a_file_that_cannot_be_read_makes_no_baseline(world: World) -> None:
    assert world.build() == 1
    said = world.said()
    assert "/usr/bin/tool: Permission denied" in said
    assert "nothing was written" in said
    assert not list(world.base.glob("*.eg*"))


def test_a_file_that_cannot_be_read_is_no_ok(world: World, request: pytest.FixtureRequest) -> None:
    policy = world.base / "policy.toml"
    policy.write_text('[[watch]]\npath = "/usr/bin"\ncategory = "program"\n')
    world.build(policy=policy)
    request.getfixturevalue("denied")
    answer = world.json()
    assert (world.code, answer["verdict"], answer["findings"]) == (3, "UNKNOWN", [])
    assert answer["unread"] == ["/usr/bin/tool: Permission denied"]


def test_unread_places_are_no_ok(world: World) -> None:
    world.build()
    (world.root / "etc/group").unlink()
    os.mkfifo(world.root / "etc/group")
    answer = world.json()
    assert answer["unread"]
    assert world.code != 0


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_image_for_a_device_with_another_processor(
    world: World, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is as somebody chose it, never as this machine would: and either is checked here."""
    monkeypatch.setattr("edgeguard.linux.cpu.computes_sha256", lambda: pytest.fail("nobody asks this machine"))
    assert world.build("--digest", algorithm.value) == 0
    files = world.baseline().files
    with open(world.base / "one.egm", "rb") as file:
        reader = Reader(file.fileno())
        assert reader.algorithm is algorithm
        assert files is not None
        tool = reader.lookup(b"/usr/bin/tool")
        assert tool is not None
        assert tool.digest == swift(algorithm).digest((world.root / "usr/bin/tool").read_bytes())
    assert world.json()["findings"] == []
    (world.root / "usr/bin/tool").write_bytes(b"\x7fELF of another intruder now..")
    (finding,) = world.json()["findings"]
    assert finding["subject"] == "/usr/bin/tool"
    assert finding["code"] == "EG-FILE-002"
    assert set(finding["observed"]) == {algorithm.value}
    assert world.build("--digest", "auto") == 0
    with open(world.base / "one.egm", "rb") as file:
        assert Reader(file.fileno()).algorithm is Algorithm.SHA256
