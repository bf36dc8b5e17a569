"""Two images on loop devices, mounted read-only in turn: an update there and back under a real daemon, with baselines
that an ordinary user built from the mounted images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_guard import FileGuard

from edgeguard.codec import cose

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices and mounts")]

TREE = Path(__file__).resolve().parents[2]
SIZE = 24 << 20
NOBODY = 65534
SETTINGS = """
name = "slots"
[paths]
root = "{base}/root"
state = "{base}/state"
runtime = "{base}/run"
exchange = "{base}/exchange"
vendor_policy = "{base}/policy"
site_policy = "{base}/site"
trust = "{base}/trust"
libexec = "{tree}/packaging/bin"
act_socket = "{base}/run/act.sock"
"""
POLICY = """
[[watch]]
path = "/usr"
category = "program"

[[rule]]
id = "content"
code = "EG-FILE-002"
kind = "file"
where = { type = "file" }
expect.sha256 = { same = true }
expect.uid = { same = true }
expect.mode = { same = true }

[[rule]]
id = "new"
code = "EG-FILE-001"
kind = "file"
where = { known = false }
expect = { known = true }

[[rule]]
id = "image"
code = "EG-BASE-008"
kind = "health"
where = { code = "EG-BASE-008" }
expect = { ok = true }
"""


class Device(FileGuard):
    """`root`: where the slot that runs is mounted."""

    def __init__(self, base: Path) -> None:  # not that of a FileGuard: other disks
        self.base = base
        self.daemon = None
        self.boots = 0
        for name in ("root", "policy", "state", "trust", "fill"):
            (base / name).mkdir()
        base.chmod(0o755)
        (base / "policy/10.toml").write_text(POLICY)
        (base / "agent.toml").write_text(SETTINGS.format(base=base, tree=TREE))
        seed = cose.generate_seed()
        (base / "trust/fleet.pub").write_text(cose.public_of(seed).hex())
        (base / "key").write_bytes(seed)
        for version in ("1", "2"):
            self.make(version)

    def make(self, version: str, odd: str = "") -> None:
        """An image of its own, as its build would."""
        tree = self.base / "fill"
        shutil.rmtree(tree)
        for name in ("usr/bin", "usr/lib", "proc"):
            (tree / name).mkdir(parents=True)
        (tree / "usr/lib/os-release").write_text(f"IMAGE_ID=pump\nIMAGE_VERSION={version}\n")
        for number in range(40):
            path = tree / f"usr/bin/tool-{number}"
            path.write_text(f"{number} of {version if number % 4 == 0 else 'all'}\n")
            path.chmod(0o755)
        (tree / "usr/bin/away").symlink_to("/etc/shadow")
        if odd:
            (tree / odd).write_text("a trojan\n")
        image = self.base / f"{version}.ext4"
        with open(image, "wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-qF", "-d", tree, image], check=True)

    def mount(self, version: str) -> Path:
        root = self.base / "root"
        for place in (root / "proc", root):
            subprocess.run(["umount", "-q", "-l", place], check=False, stderr=subprocess.DEVNULL)
        if subprocess.run(["mount", "-o", "loop,ro", self.base / f"{version}.ext4", root], check=False).returncode:
            pytest.skip("no loop devices here")
        return root

    def build(self, version: str, revision: int) -> Path:
        """By nobody, who can read all of it."""
        self.mount(version)
        out = self.base / "out"
        out.mkdir(exist_ok=True)
        os.chown(out, NOBODY, NOBODY)
        os.chown(self.base / "key", NOBODY, NOBODY)
        to = out / f"{version}.egb"
        user = [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "env",
            "PYTHONDONTWRITEBYTECODE=1",
        ]
        words = [*user, "/usr/bin/python3", "-IS", TREE / "packaging/bin/edgeguard", "baseline", "build", "-q"]
        where = ["--root", self.base / "root", "--policy", self.base / "policy", "--key", self.base / "key"]
        subprocess.run([*words, *where, "--to", to, "--revision", str(revision)], check=True)
        return to

    def boot(self, version: str) -> None:
        self.stop()
        root = self.mount(version)
        subprocess.run(["mount", "-t", "tmpfs", "none", root / "proc"], check=True)
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        self.boots += 1
        (root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{self.boots}\n")
        self.spawn()
        self.until(lambda: self.ask("baseline", "show").stdout)

    def hand_over(self, baseline: Path) -> str:
        command = ["/usr/bin/python3", "-IS", TREE / "packaging/bin/edgeguard-image-update"]
        places = ["--spool", self.base / "exchange/images", "--socket", self.base / "run/control.sock"]
        done = subprocess.run([*command, *places, baseline], capture_output=True, text=True, check=True, timeout=90)
        return done.stderr

    def revision(self) -> int:
        answer = json.loads(self.ask("baseline", "show", "-o", "json").stdout)
        return int(answer["baseline"]["revision"]) if answer.get("baseline") else 0

    def told(self, text: str) -> bool:
        return text in self.ask("log", "-n", "500").stdout

    def subjects(self) -> set[str]:
        return {finding.subject for kind in ("file", "health") for finding in self.findings(kind)}


@pytest.fixture
def device() -> Iterator[Device]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4")
    with tempfile.TemporaryDirectory(prefix="edgeguard-slots-") as base:  # pytest's own is closed to nobody
        made = Device(Path(base))
        try:
            yield made
        finally:
            made.close()


def test_an_update_there_and_back(device: Device) -> None:
    one, two = device.build("1", 8), device.build("2", 9)
    device.boot("1")
    assert "is in force" in device.hand_over(one)
    device.until(device.looked)
    assert "waits" in device.hand_over(two)
    assert (device.revision(), device.subjects()) == (8, set())

    device.boot("2")
    device.until(lambda: device.told("image: pump 1 -> pump 2: 11 files, all as signed"))
    assert (device.revision(), device.subjects()) == (9, set())

    device.boot("1")
    device.until(lambda: device.told("image: pump 2 -> pump 1: 11 files, all as signed; the device fell back"))
    device.until(lambda: device.subjects() == {"image"})
    assert device.revision() == 8


def test_an_image_that_was_changed_on_its_way_is_found(device: Device) -> None:
    one, two = device.build("1", 8), device.build("2", 9)
    device.boot("1")
    device.hand_over(one)
    device.until(device.looked)
    device.hand_over(two)
    device.stop()
    device.make("2", odd="usr/bin/tool-7")
    device.boot("2")
    device.until(lambda: device.told("image: pump 1 -> pump 2: 11 files, 1 not as signed, each a finding"))
    assert device.subjects() == {"/usr/bin/tool-7"}
