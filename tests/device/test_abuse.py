"""What must not hurt: wrong policies, hostile clients, hostile names, odd files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.device.guard import NOTICE_S, Guard

pytestmark = pytest.mark.device

STATUS_S = 1.0  # an answer, whoever else is shouting
SITE = "/etc/edgeguard/policy.d/99-test.toml"
FLOOD = """import socket, time
path = "/run/edgeguard/control.sock"
many = []
for _ in range(300):
    s = socket.socket(socket.AF_UNIX); s.setblocking(False)
    try:
        s.connect(path)
    except OSError:
        pass
    many.append(s)
big = socket.socket(socket.AF_UNIX)
try:
    big.connect(path); big.settimeout(2); big.sendall(b"x" * (8 << 20))
except OSError:
    pass
print("up", flush=True)
time.sleep(5)
"""
ZOO = """import os, socket, time
top = b"/usr/local/bin/zoo"
os.mkdir(top)
NAMES = b"new\\nline", b"\\x1b[31mred", b"\\xff\\xfe", b"n" * 255, b"-rf", b"$(reboot)", b" ", "\\u202egpj".encode()
for name in NAMES:
    with open(top + b"/" + name, "wb") as file:
        file.write(b"#!/bin/sh\\n")
os.mkfifo(top + b"/fifo")
os.mknod(top + b"/null", 0o20666, os.makedev(1, 3))
s = socket.socket(socket.AF_UNIX); s.bind(top + b"/socket")
os.symlink(b"loop", top + b"/loop")
with open(top + b"/sparse", "wb") as file:
    file.truncate(1 << 40)
os.chdir(top)
for _ in range(2000):
    os.mkdir("d"); os.chdir("d")
end = time.time() + 3
with open(top + b"/grows", "wb") as file:
    while time.time() < end:
        file.write(b"x" * 65536); file.flush()
        with open(top + b"/gone", "wb") as gone:
            gone.write(b"x")
        os.unlink(top + b"/gone")
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def quiet(guard: Guard) -> Iterator[None]:
    """The daemon that a test finds is the one that it leaves: nothing here may make it restart."""
    pid = guard.device.run("systemctl show -P MainPID edgeguard").out
    yield
    assert guard.device.run("systemctl show -P MainPID edgeguard").out == pid, guard.journal()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rule]]\nid = "x"\ncolour = "red"\n', "colour"),
        ('[[watch]]\npath = 7\ncategory = "config"\n', "path"),
        ("[[watch]\n", "99-test.toml:1"),
    ],
    ids=["key", "type", "syntax"],
)
def test_a_wrong_policy_is_refused_with_its_place(guard: Guard, text: str, said: str) -> None:
    guard.settled()
    before = guard.status()["policy"]["revision"]
    guard.device.write(SITE, text)
    try:
        lint = guard.ask("policy lint")
        assert lint.code == 1
        assert re.search(r"99-test\.toml:\d+:\d+: ", lint.out + lint.err)
        assert said in lint.out + lint.err
        assert guard.ask("reload").code == 1
        finding = guard.wait_match("EG-POL-001", ".*")
        assert guard.status()["policy"]["revision"] == before
    finally:
        guard.device.run(f"rm {SITE}").ok()
    guard.ask("reload")
    guard.wait_resolved(finding["id"])


def test_hostile_clients_do_not_delay_status(guard: Guard) -> None:
    flood = guard.device.begin(f"cat >/run/flood.py <<'E'\n{FLOOD}E\npython3 /run/flood.py")
    assert flood.stdout
    assert flood.stdout.readline() == "up\n"
    try:
        began = time.monotonic()
        answer = guard.ask("status -o json")
        took = time.monotonic() - began
    finally:
        flood.communicate(timeout=30)
    assert answer.code in (0, 1, 2)
    assert json.loads(answer.out)["verdict"] in ("OK", "WARN", "CRIT")
    assert took <= STATUS_S


def test_an_unknown_verb_is_refused_by_name(guard: Guard) -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/edgeguard/control.sock'); "
        's.sendall(b\'{\\"method\\":\\"org.edgeguard.Nonsense\\"}\\\\n\'); print(s.recv(4096).decode())'
    )
    out = guard.device.run(f'python3 -c "{code}"').ok().out
    assert '"error"' in out
    assert "org.edgeguard." in out


def test_an_unprivileged_user_is_told_so(guard: Guard) -> None:
    assert guard.ask("findings", user="nobody").code == 77
    guard.device.run("useradd -r -U -G edgeguard reader").ok()
    try:
        finding = guard.wait_open("EG-ACCT-002", "user reader")
        assert guard.ask("findings", user="reader").code in (0, 1, 2)
        assert guard.ask(f"accept {finding['id']} --reason test", user="reader").code == 77
        assert guard.ask("scan", user="reader").code == 77
    finally:
        guard.device.run("userdel reader")
    guard.wait_resolved(finding["id"])


def test_a_zoo_of_names_and_files(guard: Guard) -> None:
    guard.settled()
    zoo = guard.device.begin(f"cat >/run/zoo.py <<'E'\n{ZOO}E\npython3 /run/zoo.py")
    try:
        guard.wait_match("EG-FILE-001", r"(?s)/usr/local/bin/zoo/new.*line", within=20)
        # Meanwhile the other sensors keep their pace.
        began = time.time()
        guard.device.run(
            "python3 -c 'import socket, time; s = socket.create_server((\"0.0.0.0\", 4499)); time.sleep(6)' "
            "</dev/null >/dev/null 2>&1 &"
        )
        port = guard.wait_open("EG-PORT-001", "tcp/0.0.0.0:4499")
        assert time.time() - began <= NOTICE_S + 0.5  # with the programs' own start
        out, err = zoo.communicate(timeout=60)
        assert zoo.returncode == 0, out + err
        text = guard.ask("findings").out
        assert text.isprintable() or not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert "\\x1b[31mred" in text
    finally:
        guard.device.run("rm -rf /usr/local/bin/zoo", timeout=120).ok()
    guard.wait_resolved(port["id"])
