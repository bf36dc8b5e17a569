"""From a file on a made-up root to a finding code: sensor, learned references and vendor policy together.

Each act is one line; the root as it was learned, and an ordinary change, must give nothing.
"""

from __future__ import annotations

import base64
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeguard import codes
from edgeguard.baseline import policy, store
from edgeguard.evaluate.engine import Engine
from edgeguard.model import Columns, Observation, Outcome, Rule, Status
from edgeguard.sensors import TABLE, Context, sensor_class
from tests.fuzz.seeds import present_cache

NOW = 1_790_000_000_000
VENDOR = Path(__file__).parents[3] / "packaging" / "policy.d"
NAMES = ("usb", "host", "accounts", "packages")
KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
OTHER = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(31) + b"1").decode()
HASH = "$y$j9T$abcdefghijklmnop$0123456789012345678901234567890123456789012"

ROOT = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n",
    "etc/shadow": f"root:*:1::::::\nbob:{HASH}:1::::::\n",
    "etc/group": "root:x:0:\nsudo:x:27:bob\nbob:x:1000:\nvideo:x:44:\n",
    "etc/gshadow": "root:*::\nsudo:*::bob\nbob:!::\nvideo:*::\n",
    "etc/ld.so.conf": "/usr/local/lib\n",
    "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication no\nUsePAM yes\n",
    "home/bob/.ssh/authorized_keys": f"restrict ssh-ed25519 {KEY} bob\n",
    "var/lib/dpkg/status": "Package: dpkg\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1\n",
    "proc/sys/kernel/kptr_restrict": "1\n",
    "proc/sys/kernel/core_pattern": "core\n",
    "proc/modules": "usbhid 65536 1 - Live 0x0\n",
    "proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw\n",
    "sys/bus/usb/devices/1-1/idVendor": "046d\n",
    "sys/bus/usb/devices/1-1/idProduct": "c31c\n",
    "sys/bus/usb/devices/1-1/serial": "A1\n",
}


class World:
    """A root, what was learned of it, and what the vendor policy says about it now."""

    def __init__(self, root: Path, rules: tuple[Rule, ...]) -> None:
        self.root = root
        self.restore()
        self.sensors = [self._make(name) for name in NAMES]
        self.references = {(seen.kind, seen.subject): seen.columns for seen in self.look()}
        self.before = set(self.references)
        self.engine = Engine(rules, (), self)

    def _make(self, name: str) -> Any:
        kind: Any = sensor_class(name)
        return kind(Context(root=str(self.root)))

    def expected(self, kind: str, subject: str) -> Columns | None:
        return self.references.get((kind, subject))

    def restore(self) -> None:
        """As it was learned."""
        for extra in ("sys/bus/usb/devices/1-2", "etc/ssh/sshd_config.d"):
            shutil.rmtree(self.root / extra, ignore_errors=True)
        (self.root / "etc/subuid").unlink(missing_ok=True)
        for path, text in ROOT.items():
            self.put(path, text)
        self.descriptors("030101")
        self.libraries("/lib/x86_64-linux-gnu/libc.so.6")

    def libraries(self, *paths: str) -> None:
        """What ldconfig found."""
        (self.root / "etc/ld.so.cache").write_bytes(present_cache(*paths))

    def put(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def add(self, path: str, text: str) -> None:
        self.put(path, (self.root / path).read_text() + text)

    def descriptors(self, *triples: str, port: str = "1-1") -> None:
        heads = (bytes([9, 4, number, 0, 1]) for number in range(len(triples)))
        interfaces = b"".join(head + bytes.fromhex(triple) + b"\0" for head, triple in zip(heads, triples, strict=True))
        data = bytes([18, 1]) + bytes(16) + bytes([9, 2]) + struct.pack("<H", 9) + bytes(5) + interfaces
        place = self.root / "sys/bus/usb/devices" / port
        place.mkdir(parents=True, exist_ok=True)
        (place / "descriptors").write_bytes(data)

    def look(self) -> list[Observation]:
        return [seen for sensor in self.sensors for seen in sensor.observe(NOW)]

    def codes(self) -> set[tuple[str, str]]:
        """(code, subject) of everything that fails now."""
        seen = self.look()
        blind = {each.kind for each in seen if each.subject == "*"}  # of these nothing is gone (snapshot)
        gone = {each for each in self.before if each[0] not in blind} - {(each.kind, each.subject) for each in seen}
        seen += [Observation(kind, subject, {}, NOW, Status.ABSENT) for kind, subject in sorted(gone)]
        return {(result.rule.code, result.observation.subject) for result in self._failing(seen)}

    def _failing(self, seen: list[Observation]) -> Iterator[Any]:
        for observation in seen:
            for result in self.engine.evaluate(observation, NOW):
                if result.outcome in (Outcome.FAIL, Outcome.ERROR, Outcome.UNKNOWN):
                    yield result


@pytest.fixture(scope="module")
def rules() -> tuple[Rule, ...]:
    kinds = {kind: columns for name in TABLE for kind, columns in sensor_class(name).kinds.items()}
    known = {name: (code.title, str(code.severity)) for name, code in codes.load().items()}
    return policy.parse(store.read_policy_dirs(str(VENDOR), ""), known, kinds).rules


@pytest.fixture
def world(tmp_path: Path, rules: tuple[Rule, ...]) -> World:
    return World(tmp_path, rules)


def plug(world: World, port: str, vendor: str, serial: str) -> None:
    world.put(f"sys/bus/usb/devices/{port}/idVendor", vendor)
    world.put(f"sys/bus/usb/devices/{port}/idProduct", "0001")
    world.put(f"sys/bus/usb/devices/{port}/serial", serial)


ACTS: list[tuple[str, str, str, Callable[[World], None]]] = [
    ("EG-ACCT-001", "user toor", "a uid-0 account", lambda w: w.add("etc/passwd", "toor:x:0:0::/root:/bin/sh\n")),
    (
        "EG-ACCT-001",
        "user bob#2",
        "uid 0 behind a name that is there already",
        lambda w: w.add("etc/passwd", "bob:x:0:0::/root:/bin/sh\n"),
    ),
    ("EG-ACCT-002", "user eve", "an account", lambda w: w.add("etc/passwd", "eve:x:1001:1001::/home/eve:/bin/sh\n")),
    (
        "EG-ACCT-002",
        "user bob",
        "another shell",
        lambda w: w.put("etc/passwd", ROOT["etc/passwd"].replace("/home/bob:/bin/sh", "/home/bob:/tmp/sh")),
    ),
    ("EG-ACCT-003", "user bob", "no password", lambda w: w.put("etc/shadow", "root:*:1::::::\nbob::1::::::\n")),
    (
        "EG-ACCT-002",
        "user root",
        "a password for root",
        lambda w: w.put("etc/shadow", f"root:{HASH}:1::::::\nbob:{HASH}:1::::::\n"),
    ),
    (
        "EG-ACCT-006",
        "group sudo",
        "a member of sudo",
        lambda w: w.put("etc/group", ROOT["etc/group"].replace("27:bob", "27:bob,eve")),
    ),
    (
        "EG-ACCT-004",
        "bob SHA256:",
        "a key",
        lambda w: w.add("home/bob/.ssh/authorized_keys", f"ssh-ed25519 {OTHER} x\n"),
    ),
    (
        "EG-ACCT-004",
        "bob /home/bob/.ssh/authorized_keys",
        "a key file that is too long to be read",
        lambda w: w.add("home/bob/.ssh/authorized_keys", "# x\n" * 300_000 + f"ssh-ed25519 {OTHER} x\n"),
    ),
    (
        "EG-ACCT-006",
        "group sudo",
        "somebody who may add members to sudo",
        lambda w: w.put("etc/gshadow", ROOT["etc/gshadow"].replace("sudo:*::bob", "sudo:*:bob:bob")),
    ),
    (
        "EG-ACCT-006",
        "group friends",
        "another name for sudo",
        lambda w: w.add("etc/group", "friends:x:27:eve\n"),
    ),
    ("EG-ACCT-006", "user bob", "ids of the system", lambda w: w.put("etc/subuid", "bob:0:65536\n")),
    ("EG-ACCT-001", "user toor", "a uid-0 account by half a line", lambda w: w.add("etc/passwd", "toor:x: 0:0\n")),
    (
        "EG-SSH-002",
        "setenv",
        "sshd loads a library into every session",
        lambda w: w.put("etc/ssh/sshd_config.d/x.conf", "SetEnv LD_PRELOAD=/tmp/x.so\n"),
    ),
    (
        "EG-ACCT-004",
        "bob SHA256:",
        "a key loses its restriction",
        lambda w: w.put("home/bob/.ssh/authorized_keys", f"ssh-ed25519 {KEY} bob\n"),
    ),
    ("EG-HOST-001", "kernel.kptr_restrict", "weaker", lambda w: w.put("proc/sys/kernel/kptr_restrict", "0\n")),
    ("EG-HOST-001", "kernel.kptr_restrict", "unknown value", lambda w: w.put("proc/sys/kernel/kptr_restrict", "7\n")),
    ("EG-HOST-001", "kernel.core_pattern", "a program", lambda w: w.put("proc/sys/kernel/core_pattern", "|/tmp/x\n")),
    ("EG-HOST-002", "evil", "a foreign module", lambda w: w.add("proc/modules", "evil 1 0 - Live 0x0 (OE)\n")),
    (
        "EG-HOST-003",
        "/mnt",
        "a mount",
        lambda w: w.add("proc/self/mountinfo", "3 1 8:2 / /mnt rw - ext4 /dev/sdb1 rw\n"),
    ),
    (
        "EG-HOST-003",
        "/tmp",
        "an option is gone",
        lambda w: w.put("proc/self/mountinfo", ROOT["proc/self/mountinfo"].replace("nosuid,nodev", "nodev")),
    ),
    (
        "EG-SSH-001",
        "permitrootlogin",
        "root by a drop-in",
        lambda w: w.put("etc/ssh/sshd_config.d/x.conf", "PermitRootLogin yes\n"),
    ),
    (
        "EG-SSH-001",
        "permitrootlogin match User bob",
        "root for some",
        lambda w: w.add("etc/ssh/sshd_config", "Match User bob\nPermitRootLogin yes\n"),
    ),
    (
        "EG-SSH-002",
        "passwordauthentication",
        "passwords by a drop-in",
        lambda w: w.put("etc/ssh/sshd_config.d/x.conf", "PasswordAuthentication yes\n"),
    ),
    (
        "EG-SSH-002",
        "authorizedkeyscommand",
        "keys from a program",
        lambda w: w.add("etc/ssh/sshd_config", "AuthorizedKeysCommand /tmp/x\n"),
    ),
    (
        "EG-FILE-002",
        "/srv/evil",
        "a directory of libraries that nothing names",
        lambda w: w.libraries("/srv/evil/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"),
    ),
    (
        "EG-FILE-007",
        "/etc/ld.so.cache",
        "a cache of libraries that is too large",
        lambda w: os.truncate(w.root / "etc/ld.so.cache", 9_000_000),
    ),
    ("EG-USB-001", "1234:0001/B", "a device", lambda w: plug(w, "1-2", "1234", "B")),
    ("EG-USB-002", "046d:c31c/A1", "a storage function", lambda w: w.descriptors("030101", "080650")),
    (
        "EG-PKG-001",
        "dpkg",
        "half a package",
        lambda w: w.put(
            "var/lib/dpkg/status", ROOT["var/lib/dpkg/status"].replace("ok installed", "ok half-configured")
        ),
    ),
]


@pytest.mark.parametrize(("code", "subject", "what", "act"), ACTS, ids=[act[2] for act in ACTS])
def test_an_act_is_found_and_its_undoing_too(
    world: World, code: str, subject: str, what: str, act: Callable[[World], None]
) -> None:
    assert world.codes() == set()
    act(world)
    found = world.codes()
    assert any(each[0] == code and each[1].startswith(subject) for each in found), f"{what}: {found}"
    world.restore()
    assert world.codes() == set()


ORDINARY: list[tuple[str, Callable[[World], None]]] = [
    ("stronger", lambda w: w.put("proc/sys/kernel/kptr_restrict", "2\n")),
    ("root needs a key", lambda w: w.put("etc/ssh/sshd_config.d/x.conf", "PermitRootLogin no\n")),
    ("an upgrade", lambda w: w.put("var/lib/dpkg/status", ROOT["var/lib/dpkg/status"].replace(": 1\n", ": 2\n"))),
    ("a login", lambda w: w.add("proc/self/mountinfo", "3 1 0:8 / /run/user/1000 rw - tmpfs tmpfs rw\n")),
    ("a container", lambda w: w.add("proc/self/mountinfo", "3 1 0:8 / /var/lib/docker/x rw - overlay o rw\n")),
    ("a comment", lambda w: w.add("etc/ssh/sshd_config", "# PermitRootLogin yes\n")),
    ("ldconfig", lambda w: w.libraries("/lib/x86_64-linux-gnu/libc.so.6", "/usr/local/lib/libx.so.1")),
    ("no cache of libraries", lambda w: (w.root / "etc/ld.so.cache").unlink()),
    ("a broken cache of libraries", lambda w: w.put("etc/ld.so.cache", "x")),
    ("another port", lambda w: (w.root / "sys/bus/usb/devices/1-1").rename(w.root / "sys/bus/usb/devices/2-3")),
    ("ids of one's own", lambda w: w.put("etc/subuid", "bob:100000:65536\nroot:0:65536\n")),
    ("a key comment", lambda w: w.put("home/bob/.ssh/authorized_keys", f"restrict ssh-ed25519 {KEY} bob@home\n")),
]


@pytest.mark.parametrize(("what", "act"), ORDINARY, ids=[act[0] for act in ORDINARY])
def test_an_ordinary_day_is_quiet(world: World, what: str, act: Callable[[World], None]) -> None:
    act(world)
    assert world.codes() == set(), what


def test_pulling_a_device_and_losing_sight_are_no_findings(world: World) -> None:
    for file in (world.root / "sys/bus/usb/devices/1-1").iterdir():
        file.unlink()
    (world.root / "home/bob/.ssh/authorized_keys").unlink()
    (world.root / "home/bob/.ssh/authorized_keys").mkdir()
    assert world.codes() == set()
