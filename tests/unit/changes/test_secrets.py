"""No secret of a file survives in what is shown of it, whatever stands around it; what is none stays; and no text that
somebody made for it costs more than linear time.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.sensors.changes import compare, secrets

WORDS = "correct horse battery"
PLACES = [
    "password = {}",
    "password={}",
    "PASSWORD: {}",
    "  db_password: '{}'",
    'psk="{}"',
    "wpa-psk {}",
    "    wep_key0={}\n    psk={}",
    "export API_TOKEN={}",
    "Environment=DB_PASSWORD={}",
    'Environment="DB_PASSWORD={}" "HOME=/root"',
    '{{"user": "bob", "password": "{}"}}',
    '  "auth": {{"token": "{}"}},',
    "requirepass {}",
    "password {}",
    "secret {}",
    "rocommunity {}",
    "machine h login bob password {}",
    "*/5 * * * * root curl -H 'Authorization: Bearer {}' https://h/",
    "Authorization: Basic {}",
    "authorization={}",
    "X-Api-Key: {}",
    "1 2 * * * root mysqldump -p{} db",
    "ExecStart=/usr/bin/app --password {} --listen 0.0.0.0",
    "ExecStart=/usr/bin/app --token={} --listen 0.0.0.0",
    "sshpass -p {} ssh host",
    "<password>{}</password>",
    "<user name='a' /><db:secretKey type='x'>{}</db:secretKey>",
    "url = https://bob:{}@host/path",
    "amqp://bob:{}@host:5672/",
    "[wifi-security]\npsk={}\nkey-mgmt=wpa-psk",
    "passwords:\n  - {}\n  - {}\nnext: 1",
    "password: |\n  {}\n  more\nnext: 1",
    "password=abc\\\n{}\nnext=1",
    "password = 'abc\n{}'\nnext = 1",
    "<token>\n{}\n</token>\n<a>1</a>",
    "run --password \\\n  {} \\\n  --x",
    "private_key = {}",
    "bindpw {}",
    "rootbindpw {}",
    "PresharedKey = {}",
    ":password => '{}',",
    "$config['db_password'] = '{}';",
    "pin={}",
    "user.password := {}",
    "define('DB_PASSWORD', '{}');",
    'proxy_set_header Authorization "Basic {}";',
    "createUser bob SHA {} AES {}",
    "    wireless-key s:{}",
    "0 0 * * * root echo {} | sudo -S reboot",
    "echo 'root:{}' | chpasswd",
    "printf '%s' '{}' | cryptsetup open /dev/sda2 x",
    "//nas/share /mnt cifs username=bob,password={},uid=1000 0 0",
]
ONE_WORD = (
    "Basic {}",
    ",password=",
    "-p{}",
    "-p {}",
    " {} ",
    "Bearer",
    "login",
    "://",
    "--token=",
    "t=DB",
)  # blanks end the secret there
SPACED = [place for place in PLACES if not any(mark in place for mark in ONE_WORD)]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!$%&*+-./?@^_~"
plain = st.text(LETTERS, min_size=8, max_size=40)


def shown(text: str) -> str:
    return "\n".join(line.shown for line in secrets.lines(text + "\n"))


@pytest.mark.parametrize("place", PLACES)
@given(secret=plain)
@settings(max_examples=40, deadline=None)
def test_no_secret_survives(place: str, secret: str) -> None:
    secret = f"q{secret}Z"  # begins and ends like a word: a dash would be another option
    assert secret not in shown(place.format(secret, secret))
    assert secret not in "\n".join(line.shown for line in secrets.lines(place.format(secret, secret)))  # unended
    assert secrets.COVER in shown(place.format(secret, secret))


@pytest.mark.parametrize("place", SPACED)
def test_a_secret_of_several_words_is_covered_whole(place: str) -> None:
    assert not {"correct", "horse", "battery"} & set(shown(place.format(WORDS, WORDS)).replace("'", " ").split())


@given(old=plain, new=plain, place=st.sampled_from(PLACES))
@settings(max_examples=300, deadline=None)
def test_neither_value_nor_length_is_in_a_difference(old: str, new: str, place: str) -> None:
    old, new = f"q{old}Z", f"w{new}Y"
    around = "# a file\nx = 1\n{}\ny = 2\n"
    before, after = around.format(place.format(old, old)), around.format(place.format(new, new))
    told = compare("/etc/app.conf", before.encode(), after.encode())
    assert any(line.startswith("-") for line in told.diff)
    assert any(line.startswith("+") for line in told.diff)
    everything = "\n".join((*told.diff, *told.changes))
    assert old not in everything
    assert new not in everything
    longer = around.format(place.format(new + "0" * 7, new + "0" * 7))
    assert compare("/etc/app.conf", before.encode(), longer.encode()) == told


SHAPES = [
    "AKIA" + "A1B2C3D4E5F6G7H8",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 9,
    "glpat-" + "a1B2c3D4e5F6g7H8",
    "xoxb-" + "123456789012-abcdef",
    "$6$salt$" + "a/B.c1" * 10,
    "$y$j9T$" + "a/B.c1" * 10,
    "$2b$12$" + "aB.c1d" * 8,
    "{SSHA}" + "aB1" * 10,
    "eyJhbGciOiJI.eyJzdWIiOiIx.abcDEF123",
    "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXX",
    "0123456789abcdef" * 4,
    base64.b64encode(bytes(range(7, 250, 5))).decode(),
]


@pytest.mark.parametrize("token", SHAPES)
@pytest.mark.parametrize("place", ["{}", "a {} b", "x={}", "# was {}", 'run("{}");', "user:{}:1:0:99999:7:::"])
def test_what_looks_like_a_token_is_covered_wherever_it_stands(token: str, place: str) -> None:
    assert token not in shown(place.format(token))


def pem(lines: int, kind: str = "RSA PRIVATE KEY", prefix: str = "") -> str:
    body = base64.b64encode(bytes(range(256)) * 40).decode()
    rows = [body[64 * at : 64 * at + 64] for at in range(lines)] + ["q2w=="]
    return "\n".join(prefix + row for row in (f"-----BEGIN {kind}-----", *rows, f"-----END {kind}-----"))


@pytest.mark.parametrize(
    "make",
    [
        pem,
        lambda lines: pem(lines, "OPENSSH PRIVATE KEY", "    "),
        lambda lines: pem(lines, "PGP PRIVATE KEY BLOCK").replace("BLOCK-----\n", "BLOCK-----\nVersion: 1\n\n", 1),
        lambda lines: pem(lines, "CERTIFICATE", "# "),
        lambda lines: 'key = """' + pem(lines) + '"""',
        lambda lines: "cert: " + pem(lines),
        lambda lines: "\n".join(pem(lines).splitlines()[1:-1]),  # the block alone, without its frame
        lambda lines: "\n".join(pem(lines).splitlines()[:-1]),
    ],
)
def test_a_key_of_many_lines_is_one_line_however_long_it_is(make: Callable[[int], str]) -> None:
    text, longer = (f"a = 1\n{make(lines)}\n[b]\nb = 2\n" for lines in (12, 30))
    rows = make(12).splitlines()
    assert not [row for row in rows if len(row) > 30 and "-----" not in row and row.strip("# ") in shown(text)]
    assert "q2w==" not in shown(text)
    assert shown(text) == shown(longer)
    assert "b = 2" in shown(text)
    unended = "\n".join(line.shown for line in secrets.lines("a = 1\n" + make(12)))
    assert "q2w==" not in unended
    assert unended.endswith(secrets.UNENDED)


def test_a_change_deep_in_a_key_shows_nothing_of_it() -> None:
    """The diff's context would show the neighbours of a changed line; BEGIN is far above."""
    key = pem(60)
    other = key.replace(key.splitlines()[30], key.splitlines()[30][::-1])
    told = compare("/etc/x.conf", f"a\n{key}\nb\n".encode(), f"a\n{other}\nb\n".encode())
    assert told.diff == ("@@ -1,3 +1,3 @@", " a", f"-{secrets.BLOCK}", f"+{secrets.BLOCK}", " b")


def test_what_does_not_look_like_a_key_is_not_hidden_behind_the_beginning_of_one() -> None:
    text = "# -----BEGIN RSA PRIVATE KEY-----\nPermitRootLogin yes\n* * * * * root /tmp/x\n"
    assert "PermitRootLogin yes" in shown(text)
    assert "/tmp/x" in shown(text)


@pytest.mark.parametrize(
    "line",
    [
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "# PasswordAuthentication.  Depending on your PAM configuration,",
        "password  requisite  pam_pwquality.so retry=3",
        "password [success=1 default=ignore] pam_unix.so obscure use_authtok yescrypt",
        "auth required pam_faillock.so preauth",
        "AuthorizedKeysFile .ssh/authorized_keys",
        "passwd:         files systemd",
        "Defaults passwd_tries=3",
        "eve ALL=(ALL) NOPASSWD: ALL",
        "eve ALL=(ALL) PASSWD: ALL",
        "UUID=6b3c0e0a-1d2f-4e5a-9c8b-7a6f5e4d3c2b / ext4 defaults 0 1",
        "deb https://mirror.example/debian bookworm main",
        "ExecStart=/usr/lib/NetworkManager/nm-dispatcher --foo",
        "ConditionPathExists=/usr/share/NetworkManager/conf-available/default",
        "Ciphers chacha20-poly1305@openssh.com,aes256-gcm@openssh.com",
        "KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256",
        "root:x:0:0:root:/root:/bin/bash",
        "net.ipv4.conf.default.rp_filter = 1",
        "127.0.1.1 pump-07.factory.example.com pump-07",
        "-----------------------------------------------------------",
        "#==========================================================",
        "tcp dport { 22, 443 } ct state new accept",
        "17 * * * * root cd / && run-parts --report /etc/cron.hourly",
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
    assert secrets.line(line) == line


HOSTILE = [
    "password=",
    "pass",
    "a" * 31 + "/",
    "://a:",
    "<password>",
    "-----BEGIN A-----\n",
    '"',
    "'",
    "\\",
    "$6$",
    "a:",
    "=",
]
HOSTILE += ["echo ", "echo a|", "authorization basic ", "password',", "createuser ", "login a password "]
HOSTILE += [
    "--password \\\n",
    "Aa0/",
    "password:\n ",
    "password='\n",
    "token: |\n  x\n",
    "\t",
    "é",
    "a@",
    "curl -u ",
    "0123456789abcdef:",
    "{SSHA}",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_no_text_costs_more_than_linear_time(part: str) -> None:
    """64 KiB, the most that is read, made for it: in long lines and in short ones."""
    for text in (part * (65_536 // len(part)), (part * (2000 // len(part)) + "\n") * 32, (part + "\n") * 3000):
        began = time.process_time()
        found = secrets.lines(text[:65_536])
        assert all(isinstance(item.shown, str) for item in found[:60])  # no more of them are ever shown
        assert time.process_time() - began < 1.0


@pytest.mark.parametrize("fill", ["+", " ", '"', "'", ",", "\\n", "a", "=", "a:", "# ", "|", "-"])
def test_what_seems_to_be_a_key_costs_no_more(fill: str) -> None:
    line = (fill * 2000)[:2000] + "é"
    began = time.process_time()
    secrets.lines("\n".join(["-----BEGIN A KEY-----", *[line, "-----BEGIN A KEY-----"] * 16]))
    secrets.lines("\n".join(["A1b2" * 16, *[line, "A1b2" * 16] * 16]))
    assert time.process_time() - began < 0.5
