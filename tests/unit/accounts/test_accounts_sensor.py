"""Sensor `accounts`: odd and hostile passwd, shadow, group and key files; fingerprints as ssh-keygen prints them."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.model import Observation, Status
from edgeguard.sensors import Context, parse_accounts
from edgeguard.sensors.accounts import Accounts

NOW = 20_000 * 86_400_000  # day 20,000
HASH = b"$y$j9T$abcdefghijklmnop$0123456789012345678901234567890123456789012"

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
daemon:*:1:1::/:/usr/sbin/nologin
toor:x:0:0::/root:/bin/sh
eve::1001:1001::/home/eve:/bin/bash
bob:x:1002:100:,,,:/home/bob:/bin/bash
old:x:1003:100::/home/old:/bin/bash
lost:x:1004:100::/home/lost:/bin/bash
odd\x1b[2J\xff:x:1005:100::/home/odd:/bin/bash
bob:x:0:0::/root:/bin/bash
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
# comment
short:x:1
blank:x: 0:0::/:/bin/sh
signed:x:+00:100::/:/bin/sh
  before:x:0:0::/:/bin/sh
brief:x:0:0
colons:x:0:0::/:/bin/sh:x
after:x:0 :0::/:/bin/sh
hex:x:0x0:0::/:/bin/sh
wide:x:4294967296:0::/:/bin/sh
minus:x:-1:100::/:/bin/sh
+@net::::::
"""
SHADOW = b"root:!" + HASH + b":19000:0:99999:7:::\nbob:" + HASH + b":19000:0:99999:7:::\n"
SHADOW += b"old:" + HASH + b":19000:0:99999:7::19999:\ntoor::19000::::::\nodd\x1b[2J\xff:*:1::::::\n"
GROUP = b"root:x:0:\nusers:x:100:\nsudo:x:27:zoe,bob\ndocker:x:999:eve\nvideo:x:44:bob\n+:::\nbroken\n"
GSHADOW = b"root:*::\nsudo:!::zoe,bob\ndocker:" + HASH + b":eve:eve\nvideo:::\n"

BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))
KEY = base64.b64encode(BLOB)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    for name, data in (("passwd", PASSWD), ("shadow", SHADOW), ("group", GROUP), ("gshadow", GSHADOW)):
        (tmp_path / "etc" / name).write_bytes(data)
    return tmp_path


def look(root: Path) -> dict[str, Observation]:
    sensor = Accounts(Context(root=str(root)))
    sensor.start()
    seen = list(sensor.observe(NOW))
    found = {each.subject: each for each in seen}
    assert len(found) == len(seen), "every subject once"
    return found


def authorize(root: Path, data: bytes, path: str = "home/bob/.ssh/authorized_keys") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def test_users(root: Path) -> None:
    seen = look(root)
    names = ("root", "toor", "eve", "bob", "old", "lost")
    assert {name: seen[f"user {name}"].columns["password"] for name in names} == {
        "root": "locked",
        "toor": "none",
        "eve": "none",
        "bob": "set",
        "old": "expired",
        "lost": "locked",
    }
    bob = seen["user bob"].columns
    assert (bob["uid"], bob["home"], bob["groups"], bob["privileged"], bob["system"]) == (
        1002,
        "/home/bob",
        ("sudo", "users", "video"),
        True,
        False,
    )
    assert seen["user toor"].columns["privileged"] is True
    assert seen["user old"].columns["privileged"] is False
    assert seen["user nobody"].columns["system"] is True


def test_a_second_line_of_a_name_is_not_hidden(root: Path) -> None:
    assert look(root)["user bob#2"].columns["uid"] == 0


def test_odd_lines(root: Path) -> None:
    seen = look(root)
    assert seen["user " + os.fsdecode(b"odd\x1b[2J\xff")].columns["password"] == "locked"
    assert seen["user +@net"].columns["nis"] is True
    assert seen["group +"].columns["nis"] is True
    for name in ("short", "minus", "after", "hex", "wide"):
        assert f"user {name}" not in seen


@pytest.mark.parametrize("name", ["blank", "signed", "before", "brief", "colons"])
def test_lines_that_the_c_library_takes_for_root(root: Path, name: str) -> None:
    """As getent(1) shows them on Debian 12 and 13; no tool writes such a line."""
    assert look(root)[f"user {name}"].columns["uid"] == 0


def test_comments_do_not_hide_what_stands_behind_them(root: Path) -> None:
    (root / "etc/passwd").write_bytes(b"#\n" * 50_000 + b"\n" * 50_000 + b"toor:x:0:0::/:/bin/sh\n")
    authorize(root, b"# x\n" * 50_000 + b"ssh-ed25519 " + KEY + b"\n", ".ssh/authorized_keys")
    seen = look(root)
    assert "user toor" in seen
    assert any(each.kind == "authorized_key" for each in seen.values())


def test_what_is_beyond_a_bound_is_said(root: Path) -> None:
    """sshd reads a file of any length, so what is not read must not be taken for empty."""
    path = "/home/bob/.ssh/authorized_keys"
    line = b"ssh-ed25519 " + KEY + b"\n"
    for data in (line + b"# x\n" * 300_000 + line, line + b"no-pty" * 9_000 + b" " + line, line * 3 + b"garbage\n"):
        authorize(root, data)
        seen = look(root)
        assert seen[f"bob {path}"].columns["type"] == "unread"
        assert len([each for each in seen.values() if each.kind == "authorized_key"]) == 2
    (root / "etc/passwd").write_bytes(b"a::1:1\n" * 20_001)
    assert look(root)["*"].status is Status.UNREADABLE


def test_one_user_cannot_use_up_the_room_for_keys(root: Path) -> None:
    blobs = (BLOB[:-2] + number.to_bytes(2, "big") for number in range(600))
    authorize(root, b"".join(b"ssh-ed25519 " + base64.b64encode(blob) + b"\n" for blob in blobs))
    keys = [each.columns["type"] for each in look(root).values() if each.kind == "authorized_key"]
    assert (keys.count("ssh-ed25519"), keys.count("unread")) == (500, 1)


def test_number_0_is_root_whoever_has_it(root: Path) -> None:
    (root / "etc/group").write_bytes(b"wheel2:x:0:eve\n")
    assert look(root)["group wheel2"].columns["privileged"] is True


def test_a_group_is_its_number(root: Path) -> None:
    (root / "etc/group").write_bytes(GROUP + b"friends:x:27:eve\nwheel2:x:0:eve\n")
    seen = look(root)
    assert seen["group friends"].columns["privileged"] is True
    assert seen["group wheel2"].columns["privileged"] is True
    assert seen["group video"].columns["privileged"] is False


@pytest.mark.parametrize(
    ("line", "reaching"),
    [
        ("bob:0:65536", True),
        ("1002:999:1", True),
        ("bob:100000:65536", False),
        ("root:0:65536", False),
        ("bob:0", False),
    ],
)
def test_subordinate_ids(root: Path, line: str, reaching: bool) -> None:
    (root / "etc/subgid").write_text(line + "\n")
    assert [name for name, each in look(root).items() if each.columns.get("reaching")] == (
        ["user bob", "user bob#2"] if line.startswith("bob") and reaching else ["user bob"] if reaching else []
    )


def test_places_are_where_sshd_looks(root: Path) -> None:
    authorize(root, b"AuthorizedKeysFile .ssh/authorized_keys /etc/keys/%u\n", "etc/ssh/sshd_config")
    sensor = Accounts(Context(root=str(root)))
    list(sensor.observe(NOW))
    assert {"/home/bob/.ssh/authorized_keys", "/etc/keys/bob", "/nonexistent/.ssh/authorized_keys"} <= sensor.places


def test_groups(root: Path) -> None:
    seen = look(root)
    sudo = seen["group sudo"].columns
    assert (sudo["gid"], sudo["members"], sudo["privileged"], sudo["password"]) == (27, ("bob", "zoe"), True, "locked")
    docker = seen["group docker"].columns
    assert (docker["password"], docker["admins"]) == ("set", ("eve",))
    assert seen["group video"].columns["password"] == "locked"
    assert seen["group video"].columns["privileged"] is False


def test_no_secret_in_any_column(root: Path) -> None:
    authorize(root, b"ssh-ed25519 " + KEY + b" bob@laptop\n")
    text = repr(look(root))
    assert "$y$" not in text
    assert KEY.decode() not in text


def test_shadow_that_cannot_be_read_is_unknown_and_said(root: Path) -> None:
    (root / "etc/shadow").unlink()
    sensor = Accounts(Context(root=str(root)))
    assert "shadow" in sensor.start().blind[0]
    assert {each.subject: each for each in sensor.observe(NOW)}["user bob"].columns["password"] == "unknown"


def test_no_passwd_is_an_answer(tmp_path: Path) -> None:
    seen = list(Accounts(Context(root=str(tmp_path))).observe(NOW))
    assert [(each.kind, each.subject, each.status) for each in seen] == [
        ("account", "*", Status.UNREADABLE),
        ("authorized_key", "*", Status.UNREADABLE),
    ]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_fingerprint_as_ssh_keygen_prints_it(root: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "me", "-f", str(key)], check=True)
    public = key.with_suffix(".pub")
    said = subprocess.run(["ssh-keygen", "-lf", str(public)], check=True, capture_output=True, text=True).stdout.split()
    authorize(root, public.read_bytes())
    columns = look(root)[f"bob {said[1]}"].columns
    assert columns == {
        "user": "bob",
        "path": "/home/bob/.ssh/authorized_keys",
        "type": "ecdsa-sha2-nistp256",
        "comment": "me",
        "options": (),
    }


def test_options_and_malformed_lines(root: Path) -> None:
    authorize(
        root,
        b'# comment\n\nfrom="10.0.0.1,10.0.0.2",command="echo \\"a b\\", c" ssh-ed25519 '
        + KEY
        + b" x y\nssh-ed25519 !!!\ngarbage\nssh-ed25519 "
        + base64.b64encode(BLOB[:10])
        + b"\n"
        + b"A" * 100_000
        + b"\n",
    )
    sensor = Accounts(Context(root=str(root)))
    key, unread = [each for each in sensor.observe(NOW) if each.kind == "authorized_key"]
    assert unread.columns["type"] == "unread"
    assert key.columns["options"] == ('from="10.0.0.1,10.0.0.2"', 'command="echo \\"a b\\", c"')
    assert key.columns["comment"] == "x y"
    assert sensor.malformed == 4


def test_the_same_key_without_its_restriction_is_another_subject(root: Path) -> None:
    authorize(root, b"restrict ssh-ed25519 " + KEY + b"\nssh-ed25519 " + KEY + b"\nssh-ed25519 " + KEY + b" again\n")
    found = [each for each in look(root).values() if each.kind == "authorized_key"]
    assert [each.columns["options"] for each in found] == [("restrict",), ()]
    assert found[1].subject == found[0].subject + "#2"


def test_keys_lie_where_sshd_looks(root: Path) -> None:
    authorize(root, b"AuthorizedKeysFile .ssh/other /etc/keys/%u %%\n", "etc/ssh/sshd_config")
    authorize(root, b"ssh-ed25519 " + KEY + b"\n", "etc/keys/bob")
    [key] = [each for each in look(root).values() if each.kind == "authorized_key"]
    assert key.columns["path"] == "/etc/keys/bob"


def test_a_fifo_as_key_file_stops_nobody(root: Path) -> None:
    (root / "home/bob/.ssh").mkdir(parents=True)
    os.mkfifo(root / "home/bob/.ssh/authorized_keys")
    seen = look(root)["*"]
    assert (seen.kind, seen.status) == ("authorized_key", Status.UNREADABLE)
    assert "/home/bob/.ssh/authorized_keys" in seen.note
    assert "user bob" in look(root)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    list(parse_accounts.users(data))
    list(parse_accounts.groups(data))
    parse_accounts.shadow(data, 1)
    parse_accounts.group_shadow(data)
    found, malformed = parse_accounts.keys(data)
    assert len(found) + malformed <= data.count(b"\n") + 1


@settings(max_examples=100)
@given(st.text(st.characters(blacklist_characters="\n", blacklist_categories=("Cs",)), max_size=40))
def test_any_prefix_before_a_key(prefix: str) -> None:
    parse_accounts.keys(prefix.encode() + b" ssh-ed25519 " + KEY)
