"""Mode enforce: one rule each for a file, a process and a port; each is put right within three seconds, and undone."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.device.guard import Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

RIGHT_S = 3.0  # from the act to things put right
RULES = ("file.content.program", "process.memfd", "listener.tcp", "sysctl.weakened")
SITE = "".join(f'[[rule]]\nid = "{rule}"\noverride = true\nmode = "enforce"\n\n' for rule in RULES)
REDIRECTS = "/proc/sys/net/ipv4/conf/all/accept_redirects"
MEMFD = """import os
fd = os.memfd_create("hidden", 0)
with open("/bin/sleep", "rb") as file:
    os.write(fd, file.read())
os.execv(f"/proc/self/fd/{fd}", ["quiet", "600"])
"""


@pytest.fixture(scope="module")
def enforcing(image: Path, packages: dict[str, Path]) -> Iterator[Guard]:
    """A device whose policy enforces four rules, with a cable to the host."""
    with Device(image, net="veth") as device:
        device.write("/etc/edgeguard/agent.toml", 'mode = "enforce"\n')
        device.write("/etc/edgeguard/policy.d/50-site.toml", SITE)
        guard = Guard(device)
        guard.install(packages["edgeguard"])
        document = guard.learned()
        assert document["policy"]["mode"] == "enforce"
        yield guard


def until(condition: Callable[[], bool], began: float, what: str, guard: Guard) -> None:
    """The condition holds within RIGHT_S of `began`."""
    while not condition():
        if time.monotonic() - began > RIGHT_S:
            raise AssertionError(f"{what}: not within {RIGHT_S} s\n{guard.findings(all_=True)}\n{guard.journal()}")
        time.sleep(0.05)


def reaches(address: str, port: int) -> bool:
    """A connection from the host, which is another network namespace."""
    try:
        socket.create_connection((address, port), 0.3).close()
    except OSError:
        return False
    return True


def test_a_file_is_put_back(enforcing: Guard) -> None:
    device, path = enforcing.device, "/usr/sbin/sshd"
    before, mode = device.read(path), device.inside(path).stat()
    began = time.monotonic()
    # in one write: the remedy is quicker than a copy in pieces, and would find half of it
    device.run(f"cp {path} /root/evil; echo evil >>/root/evil; dd if=/root/evil of={path} bs=8M conv=notrunc").ok()
    evil = device.read("/root/evil")
    until(lambda: device.read(path) == before, began, "content", enforcing)
    after = device.inside(path).stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (mode.st_mode, mode.st_uid, mode.st_gid)
    digest = sha256(evil).hexdigest()
    kept = device.run(f"find /var/lib/edgeguard-act/quarantine -type f -exec sha256sum {{}} + | grep {digest}")
    assert kept.code == 0, "the tampered copy is in quarantine"
    finding = next(f for f in enforcing.findings(all_=True) if f["subject"] == path)
    assert "done" in finding["remediation"]
    enforcing.ask(f"undo {finding['id']} --reason test").ok()
    assert device.read(path) == evil
    device.write("/root/good", before, 0o755)
    device.run(f"cp /root/good {path}").ok()
    enforcing.wait_resolved(finding["id"])


def test_a_process_is_stopped(enforcing: Guard) -> None:
    device = enforcing.device
    device.write("/run/act.py", MEMFD)
    began = time.monotonic()
    device.run("python3 /run/act.py </dev/null >/dev/null 2>&1 & echo $! >/run/act.pid").ok()
    until(lambda: device.run("kill -0 $(cat /run/act.pid)").code != 0, began, "the process ends", enforcing)
    finding = enforcing.wait_match("EG-PROC-002", "memfd:hidden", states=("open", "resolved"))
    assert "done" in finding["remediation"]
    enforcing.ask(f"undo {finding['id']} --reason test").ok()


def test_a_port_answers_no_more(enforcing: Guard) -> None:
    device = enforcing.device
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 4444)); time.sleep(600)"
    began = time.monotonic()
    device.run(f'python3 -c "{code}" </dev/null >/dev/null 2>&1 & echo $! >/run/port.pid').ok()
    try:
        device.wait("ss -Hltn sport = :4444 | grep -q 4444", timeout=5, every=0.02)
        until(lambda: not reaches(device.address, 4444), began, "the port is closed to others", enforcing)
        finding = enforcing.wait_open("EG-PORT-001", "tcp/0.0.0.0:4444")
        assert "done" in enforcing.wait_remedied(finding["id"])["remediation"]
        enforcing.ask(f"undo {finding['id']} --reason test").ok()
        assert reaches(device.address, 4444)
    finally:
        device.run("kill $(cat /run/port.pid)")


def test_a_sysctl_is_set_back(enforcing: Guard) -> None:
    device = enforcing.device
    began = time.monotonic()
    device.run(f"echo 1 >{REDIRECTS}").ok()
    until(lambda: device.run(f"cat {REDIRECTS}").out == "0\n", began, "the value is back", enforcing)
    finding = enforcing.wait_match(
        "EG-HOST-001", re.escape("net.ipv4.conf.all.accept_redirects"), states=("open", "resolved")
    )
    enforcing.ask(f"undo {finding['id']} --reason test").ok()
    assert device.run(f"cat {REDIRECTS}").out == "1\n"
    device.run(f"echo 0 >{REDIRECTS}").ok()
