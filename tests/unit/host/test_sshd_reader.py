"""What sshd would do: words, first value wins, Include, Match; and the real `sshd -T` as oracle where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.model import Status
from edgeguard.sensors import parse_sshd, sshd

# Another place for sshd and its libraries than the system's, for machines without openssh-server.
SSHD = os.environ.get("EDGEGUARD_TEST_SSHD") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def write(root: Path, text: str | bytes, name: str = "sshd_config") -> None:
    path = root / "etc/ssh" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def effective(root: Path) -> dict[str, str]:
    return {each.subject: str(each.columns["value"]) for each in sshd.observe(str(root), 1)}


def test_no_sshd_no_settings(tmp_path: Path) -> None:
    assert effective(tmp_path) == {}


def test_defaults_hold_where_nothing_is_set(tmp_path: Path) -> None:
    write(tmp_path, "# nothing\n")
    found = effective(tmp_path)
    assert found["permitrootlogin"] == "without-password"
    assert found["port"] == "22"
    assert len(found) == len(parse_sshd.KEYWORDS)


def test_the_first_value_wins_and_drop_ins_come_where_they_are_included(tmp_path: Path) -> None:
    write(tmp_path, "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin no\nX11Forwarding yes\n")
    write(tmp_path, "permitrootlogin=yes\n", "sshd_config.d/10-a.conf")
    write(tmp_path, "PermitRootLogin no\nX11Forwarding no\n", "sshd_config.d/20-b.conf")
    write(tmp_path, "PermitEmptyPasswords yes\n", "sshd_config.d/30-ignored.txt")
    found = effective(tmp_path)
    assert found["permitrootlogin"] == "yes"
    assert found["x11forwarding"] == "no"
    assert found["permitemptypasswords"] == "no"


def test_match_blocks_are_subjects_of_their_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        "PasswordAuthentication no\nMatch User backup Address 10.0.0.0/8\n  PasswordAuthentication yes\n"
        "  PasswordAuthentication no\nMatch all\nPermitRootLogin yes\n",
    )
    found = effective(tmp_path)
    assert found["passwordauthentication"] == "no"
    assert found["passwordauthentication match User backup Address 10.0.0.0/8"] == "yes"
    assert found["permitrootlogin"] == "without-password"
    assert found["permitrootlogin match all"] == "yes"


def test_a_match_in_an_included_file_ends_with_it(tmp_path: Path) -> None:
    write(tmp_path, "Include a.conf\nPermitRootLogin no\n")
    write(tmp_path, "Match User x\nPermitRootLogin yes\n", "a.conf")
    assert effective(tmp_path)["permitrootlogin"] == "no"


def test_an_include_of_itself_ends(tmp_path: Path) -> None:
    write(tmp_path, "Include sshd_config\nPermitRootLogin no\n")
    assert effective(tmp_path)["permitrootlogin"] == "no"


def test_a_fifo_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/ssh/sshd_config")
    [seen] = sshd.observe(str(tmp_path), 1)
    assert seen.status is Status.UNREADABLE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Port 22", ("port", "22")),
        ("  Port\t=  22 # comment", ("port", "22")),
        ("port=22", ("port", "22")),
        ('AuthorizedKeysFile "a b" c', ("authorizedkeysfile", "a b", "c")),
        ("AuthorizedKeysFile 'a\"b' c\\ d", ("authorizedkeysfile", 'a"b', "c d")),
        ("ChallengeResponseAuthentication no", ("kbdinteractiveauthentication", "no")),
        ("# Port 22", ()),
        ("", ()),
        ('Banner "unclosed', ()),
    ],
)
def test_words(line: str, expected: tuple[str, ...]) -> None:
    assert parse_sshd.words(line.encode()) == expected


@pytest.mark.parametrize(
    ("keyword", "weaker", "stronger"),
    [
        ("permitrootlogin", "yes", "without-password"),
        ("permitrootlogin", "forced-commands-only", "no"),
        ("passwordauthentication", "yes", "no"),
        ("pubkeyauthentication", "no", "yes"),
        ("maxauthtries", "20", "3"),
        ("gatewayports", "clientspecified", "no"),
        ("loglevel", "QUIET", "INFO"),
        ("ciphers", "+aes128-cbc", "aes256-gcm@openssh.com"),
        ("macs", "hmac-sha1", "(default)"),
        ("permitrootlogin", "rubbish", "yes"),
    ],
)
def test_levels(keyword: str, weaker: str, stronger: str) -> None:
    assert parse_sshd.level(keyword, weaker) < parse_sshd.level(keyword, stronger)


def test_rsa_with_sha2_is_not_weak_and_taking_away_never_is() -> None:
    assert parse_sshd.level("hostkeyalgorithms", "rsa-sha2-512,ssh-ed25519") == 1
    assert parse_sshd.level("ciphers", "-*-cbc") == 1


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    lines = [found for line in data.split(b"\n") if (found := parse_sshd.words(line))]
    assert len(list(parse_sshd.settings(lines))) >= len(parse_sshd.KEYWORDS)


@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nPort 2222\nPort 22\nUsePAM yes\nMaxAuthTries 3",
        "Permitrootlogin=YES\nAllowTcpForwarding local # here\nAcceptEnv LANG LC_*\nAcceptEnv X\nLogLevel verbose\n",
        'AllowUsers a b\nAllowUsers c\nX11Forwarding "yes"\nPermitRootLogin no\nMatch User a\nPermitRootLogin yes\n',
        "KbdInteractiveAuthentication no\nGatewayPorts clientspecified\nAuthorizedKeysFile .ssh/k /etc/keys/%u\n",
    ],
)
def test_the_same_as_sshd(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    assert SSHD is not None
    run = subprocess.run(
        [SSHD, "-T", "-h", str(key), "-f", str(tmp_path / "etc/ssh/sshd_config")],
        check=False,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        pytest.skip(f"sshd -T does not work here: {run.stderr.strip()}")
    theirs: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        theirs.setdefault(keyword, []).append(value)
    ours = effective(tmp_path)
    compared = 0
    for keyword, known in parse_sshd.KEYWORDS.items():
        if known.algorithms or keyword == "listenaddress" or keyword not in theirs:
            continue
        said = " ".join(theirs[keyword])
        if known.lists:
            assert sorted(ours[keyword].split()) == sorted(said.split()), keyword
        else:
            assert ours[keyword] == said, keyword
        compared += 1
    assert compared > 25
