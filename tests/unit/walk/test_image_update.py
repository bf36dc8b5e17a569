"""An image update goes through every room: handed over by the hook, waiting, in force when that image runs, told in one
record, and back again; what is not as signed is found, and nothing that is wrong with it stops the update."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from walker import SETTINGS, TREE, Walk

from edgeguard.cli.main import main
from edgeguard.codec import cose

POLICY = """
[[watch]]
path = "/usr"
category = "program"

[[rule]]
id = "content"
code = "EG-FILE-002"
kind = "file"
severity = "critical"
where = {{ type = "file", known = true }}
expect = {{ sha256 = {{ same = true }} }}

[[rule]]
id = "new"
code = "EG-FILE-001"
kind = "file"
severity = "high"
where = {{ type = "file", status = "present" }}
expect = {{ known = true }}

[[rule]]
id = "gone"
code = "EG-FILE-004"
kind = "file"
severity = "high"
where = {{ known = true }}
expect = {{ status = "present" }}

[[rule]]
id = "image"
code = "EG-BASE-008"
kind = "health"
where = {{ code = "EG-BASE-008" }}
expect = {{ ok = true }}

[[rule]]
id = "signature"
code = "EG-BASE-001"
kind = "health"
where = {{ code = "EG-BASE-001" }}
expect = {{ ok = true }}

[[rule]]
id = "damaged"
code = "EG-BASE-006"
kind = "health"
where = {{ code = "EG-BASE-006" }}
expect = {{ ok = true }}

[[rule]]
id = "older"
code = "EG-BASE-002"
kind = "health"
where = {{ code = "EG-BASE-002" }}
expect = {{ ok = true }}
"""
FILES = 30


class Slots(Walk):
    """A device with two slots; `root` is the one that runs."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, POLICY, SETTINGS.replace("[paths]\n", '[paths]\nroot = "{base}/root"\n'))
        self.seed = cose.generate_seed()
        (base / "trust").mkdir()
        (base / "trust/fleet.pub").write_text(cose.public_of(self.seed).hex())
        (base / "key").write_bytes(self.seed)
        self.boots = 0
        self.runs = ""
        for version in ("1", "2"):
            self.image(version)

    def image(self, version: str) -> None:
        root = self.base / f"image-{version}"
        for name in ("usr/bin", "usr/lib", "proc/sys/kernel/random"):
            (root / name).mkdir(parents=True)
        (root / "usr/lib/os-release").write_text(f"IMAGE_ID=pump\nIMAGE_VERSION={version}\n")
        for number in range(FILES):
            (root / f"usr/bin/tool-{number}").write_text(f"tool {number} of {version if number % 2 else 'all'}\n")
        (root / f"usr/bin/only-in-{version}").write_text("x")

    def build(self, version: str, revision: int, key: str = "key") -> Path:
        to = self.base / f"{version}-{revision}.egb"
        words = ("--root", self.base / f"image-{version}", "--policy", self.base / "policy", "--key", self.base / key)
        if self.runs == version:
            words = ("--root", self.base / "root", *words[2:])
        where = ("--to", to, "--revision", revision, "-q")
        assert main(["baseline", "build", *(str(word) for word in (*words, *where))]) == 0
        return to

    def boot(self, version: str) -> None:
        """Another slot, another boot."""
        self.stop()
        root = self.base / "root"
        if self.runs != version:
            if self.runs:
                root.rename(self.base / f"image-{self.runs}")
            (self.base / f"image-{version}").rename(root)
            self.runs = version
        self.boots += 1
        (root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{self.boots}\n")
        self.start()
        self.until(lambda: self.ask("baseline", "show").stdout)

    def hand_over(self, *files: Path | str, strict: bool = False) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-IS", str(TREE / "packaging/bin/edgeguard-image-update")]
        places = ("--spool", f"{self.base}/exchange/images", "--socket", f"{self.base}/run/control.sock")
        more = ("--strict",) if strict else ()
        words = [*command, *more, *places, *(str(file) for file in files)]
        return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)

    def waiting(self) -> list[str]:
        return os.listdir(self.base / "exchange/images")

    def revision(self) -> int:
        answer = json.loads(self.ask("baseline", "show", "-o", "json").stdout)
        return int(answer["baseline"]["revision"]) if answer.get("baseline") else 0

    def codes(self) -> set[tuple[object, object]]:
        return {(finding["code"], finding["subject"]) for finding in self.findings()}

    def told(self, text: str) -> bool:
        return text in self.ask("log", "-n", "500").stdout


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Slots]:
    slots = Slots(tmp_path)
    one = slots.build("1", 8)
    slots.boot("1")
    done = slots.hand_over(one)
    assert "is in force" in done.stderr, done.stderr
    try:
        slots.until(slots.learned)
        yield slots
    finally:
        slots.stop()


def test_there_and_back(device: Slots) -> None:
    assert device.codes() == set()
    done = device.hand_over(device.build("2", 9))
    assert done.returncode == 0
    assert "r9 for image pump 2 waits until that image runs; r8 stays in force" in done.stderr
    assert (device.revision(), device.waiting()) == (8, [])
    history = json.loads(device.ask("baseline", "history", "-o", "json").stdout)["revisions"]
    assert [(row["revision"], row["waits"], row["in_force"]) for row in history] == [(9, True, False), (8, False, True)]

    device.boot("2")
    device.until(lambda: device.told("image: pump 1 -> pump 2: 18 files, all as signed"))
    assert (device.revision(), device.codes()) == (9, set())

    device.boot("1")
    device.until(lambda: device.told("image: pump 2 -> pump 1: 18 files, all as signed; the device fell back"))
    assert device.revision() == 8
    device.until(device.codes)
    assert device.codes() == {("EG-BASE-008", "image")}

    device.boot("2")
    device.until(lambda: device.revision() == 9 and device.codes() == set())


def test_what_is_not_as_signed_is_found(device: Slots) -> None:
    device.hand_over(device.build("2", 9))
    new = device.base / "image-2/usr/bin"
    (new / "tool-3").write_text("a trojan\n")
    shutil.copy2(device.base / "root/usr/bin/tool-5", new / "tool-5")  # the old one, as the old baseline knows it
    (new / "stranger").write_text("x")
    device.boot("2")
    device.until(lambda: device.told("pump 1 -> pump 2: 18 files, 3 not as signed, each a finding"))
    expected = {("EG-FILE-002", "/usr/bin/tool-3"), ("EG-FILE-002", "/usr/bin/tool-5")}
    assert device.codes() == {*expected, ("EG-FILE-001", "/usr/bin/stranger")}


def test_an_image_that_nobody_signed_is_judged_by_what_stands(device: Slots) -> None:
    device.boot("2")
    device.until(lambda: ("EG-BASE-008", "image") in device.codes())
    device.until(lambda: ("EG-FILE-002", "/usr/bin/tool-1") in device.codes())
    assert device.revision() == 8


def test_what_is_wrong_is_refused_by_name_and_the_update_goes_on(device: Slots) -> None:
    (device.base / "other").write_bytes(cose.generate_seed())
    stranger = device.build("2", 9, key="other")
    done = device.hand_over(stranger)
    assert (done.returncode, device.revision(), device.waiting()) == (0, 8, [])
    assert "refused: signed by key" in done.stderr
    assert any(code == "EG-BASE-001" for code, _ in device.codes())
    good = device.build("2", 10)
    good.with_suffix(".egm").write_bytes(b"another manifest")
    done = device.hand_over(good, strict=True)
    assert (done.returncode, "refused" in done.stderr) == (1, True)
    assert device.hand_over(device.base / "nowhere.egb").returncode == 0
    assert any(code == "EG-BASE-006" and "nowhere" in str(subject) for code, subject in device.codes())
    assert (device.revision(), device.waiting()) == (8, [])
    # A good one ends what was said of the others.
    assert "waits" in device.hand_over(device.build("2", 11)).stderr
    device.until(lambda: device.codes() == set())


def test_an_old_bundle_does_not_bring_an_old_measure(device: Slots) -> None:
    old = device.build("2", 7)
    done = device.hand_over(old)
    assert "refused: revision 7 is older than 8" in done.stderr
    assert any(code == "EG-BASE-002" for code, _ in device.codes())
    # The very bundle that runs, installed once more, is no downgrade.
    again = device.base / "1-8.egb"
    assert "is in force" in device.hand_over(again).stderr


def test_what_was_handed_over_without_a_daemon_is_taken_at_its_start(device: Slots) -> None:
    device.stop()
    done = device.hand_over(device.build("2", 9), strict=True)
    assert (done.returncode, "looked at when it starts" in done.stderr) == (0, True)
    (device.base / "other").write_bytes(cose.generate_seed())
    device.hand_over(device.build("2", 10, key="other"))
    assert len(device.waiting()) == 2
    device.boot("2")
    device.until(lambda: device.revision() == 9)
    device.until(lambda: any(code == "EG-BASE-001" for code, _ in device.codes()))
    assert device.waiting() == []
