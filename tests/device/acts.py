"""What an intruder or a careless person does to a device, how it is undone, and what EdgeGuard must say of it.

A table: one row an act. The shell that acts lives on for a moment, as a person's shell or an intruder's program does;
nspawn offers no process events (see docs/testing.md), so the actor of a program that ends at once may stay unknown.
All acts may be done at the same time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHr1B0cTn1m4cHz0lJ1oE3Qzq8mJX0Vt2yN5m6x7w8Y9 test@bench"
FLIP = """import os, sys
path = sys.argv[1]
status = os.stat(path)
with open(path, "r+b") as file:
    file.seek(status.st_size // 2)
    byte = file.read(1)[0]
    file.seek(-1, 1)
    file.write(bytes([byte ^ 1]))
os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
"""
MEMFD = """import os
fd = os.memfd_create("hidden", 0)
with open("/bin/sleep", "rb") as file:
    os.write(fd, file.read())
os.execv(f"/proc/self/fd/{fd}", ["quiet", "600"])
"""
LISTEN = (
    "import socket, time; s = socket.socket({family}, {kind}); {option}"
    "s.bind(({address!r}, {port})); {listen}time.sleep(600)"
)


def background(name: str) -> str:
    return f"</dev/null >/dev/null 2>&1 & echo $! >/run/act-{name}.pid"


def end(name: str) -> str:
    return f"kill $(cat /run/act-{name}.pid); rm /run/act-{name}.pid"


def listen(name: str, family: str, kind: str, address: str, port: int) -> str:
    option = "s.setsockopt(41, 26, 1); " if family == "socket.AF_INET6" else ""  # IPV6_V6ONLY
    call = "s.listen(); " if kind == "socket.SOCK_STREAM" else ""
    code = LISTEN.format(family=family, kind=kind, address=address, port=port, option=option, listen=call)
    return f'python3 -c "{code}" {background(name)}'


@dataclass(frozen=True, slots=True)
class Act:
    name: str
    do: str
    undo: str
    code: str
    subject: str  # a pattern: fingerprints are not written down here
    actor: str  # a pattern over the actor's exe


SHELL = r"/(usr/)?bin/(da)?sh"
PYTHON = r"/usr/bin/python3(\.\d+)?"
ACTS = [
    Act(
        name="byte",
        do=f"python3 - /usr/sbin/sshd <<'E'\n{FLIP}import time; time.sleep(1)\nE",
        undo=f"python3 - /usr/sbin/sshd <<'E'\n{FLIP}E",
        code="EG-FILE-002",
        subject=re.escape("/usr/sbin/sshd"),
        actor=PYTHON,
    ),
    Act(
        name="setuid",
        do="python3 -c \"import os, shutil, time; shutil.copy('/usr/bin/id', '/usr/local/bin/idd'); "
        "os.chmod('/usr/local/bin/idd', 0o4755); time.sleep(1)\"",
        undo="rm /usr/local/bin/idd",
        code="EG-FILE-005",
        subject=re.escape("/usr/local/bin/idd"),
        actor=PYTHON,
    ),
    Act(
        name="preload",
        do="echo '# one more line' >>/etc/ld.so.preload; sleep 1",
        undo="rm /etc/ld.so.preload",
        code="EG-PERS-001",
        subject=re.escape("/etc/ld.so.preload"),
        actor=SHELL,
    ),
    Act(
        name="unit",
        do="printf '[Service]\\nExecStart=/bin/true\\n' >/etc/systemd/system/quiet.service; sleep 1",
        undo="rm /etc/systemd/system/quiet.service",
        code="EG-PERS-002",
        subject=re.escape("/etc/systemd/system/quiet.service"),
        actor=SHELL,
    ),
    Act(
        name="key",
        do=f"mkdir -p -m 700 /root/.ssh; echo '{KEY}' >>/root/.ssh/authorized_keys; sleep 1",
        undo="rm -r /root/.ssh",
        code="EG-ACCT-004",
        subject=r"root SHA256:[A-Za-z0-9+/]{43}",
        actor=SHELL,
    ),
    Act(
        name="uid-0",
        do="cp -a /etc/passwd /root/passwd; echo 'toor:x:0:0::/root:/bin/sh' >>/etc/passwd; sleep 1",
        undo="cat /root/passwd >/etc/passwd; touch -r /root/passwd /etc/passwd; rm /root/passwd",
        code="EG-ACCT-001",
        subject="user toor",
        actor=SHELL,
    ),
    Act(
        name="deleted",
        do=f"cp /bin/sleep /tmp/gone; /tmp/gone 600 {background('deleted')}; sleep 0.2; rm /tmp/gone",
        undo=end("deleted"),
        code="EG-PROC-001",
        subject=re.escape("/tmp/gone"),
        actor=r"/tmp/gone",
    ),
    Act(
        name="memfd",
        do=f"cat >/run/act.py <<'E'\n{MEMFD}E\npython3 /run/act.py {background('memfd')}",
        undo=end("memfd"),
        code="EG-PROC-002",
        subject=r"memfd:hidden",
        actor=r"(/)?memfd:hidden",
    ),
    Act(
        name="tcp4",
        do=listen("tcp4", "socket.AF_INET", "socket.SOCK_STREAM", "0.0.0.0", 4444),
        undo=end("tcp4"),
        code="EG-PORT-001",
        subject=re.escape("tcp/0.0.0.0:4444"),
        actor=PYTHON,
    ),
    Act(
        name="tcp6",
        do=listen("tcp6", "socket.AF_INET6", "socket.SOCK_STREAM", "::", 4446),
        undo=end("tcp6"),
        code="EG-PORT-001",
        subject=re.escape("tcp/[::]:4446"),
        actor=PYTHON,
    ),
    Act(
        name="udp",
        do=listen("udp", "socket.AF_INET", "socket.SOCK_DGRAM", "0.0.0.0", 5555),
        undo=end("udp"),
        code="EG-PORT-002",
        subject=re.escape("udp/0.0.0.0:5555"),
        actor=PYTHON,
    ),
    Act(
        name="sysctl",
        do="echo 1 >/proc/sys/net/ipv4/conf/all/accept_redirects; sleep 1",
        undo="echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects",
        code="EG-HOST-001",
        subject=re.escape("net.ipv4.conf.all.accept_redirects"),
        actor=f"{SHELL}|",  # writes to /proc/sys give no event on some kernels: who it was may be unknown
    ),
]
