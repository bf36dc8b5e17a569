"""Attacks beyond the plain ones of test_notice.py, and their harmless twins, which must not raise anybody's pulse.

A table each. An attack is found by its code and subject within two seconds, with at least the severity that is given,
and resolves when it is undone. A twin looks alike and is an ordinary day: nothing of medium or above comes of it.
"""

from __future__ import annotations

import json
import platform
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.device.guard import NOTICE_S, Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

SHOWN_S = NOTICE_S + 0.5  # from before the acting program starts until the asking one has ended
QUIET_S = 3.0  # what has not come of a twin by then does not come
SEVERITIES = ("informational", "low", "medium", "high", "critical")
HASH = "$6$abcdefgh$" + "0" * 86  # of no password, but one could log in by it

# A user, a package whose program runs, a key that may log in, and root's own cron table: what an ordinary device has.
PREPARE = f"""useradd -m -s /bin/bash -p '{HASH}' alice; useradd -r -s /usr/sbin/nologin svc
mkdir -p -m 700 /root/.ssh
for key in one two; do ssh-keygen -q -t ed25519 -N '' -f /root/$key; done; cp /root/one.pub /root/.ssh/authorized_keys
echo '* * * * * /bin/true' | crontab -
cd /root; mkdir -p app/DEBIAN app/usr/bin; cp /bin/sleep app/usr/bin/appd
printf 'Package: app\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: x\\n' >app/DEBIAN/control
dpkg-deb -b app app.deb; rm -r app; dpkg -i app.deb
printf '[Service]\\nExecStart=/usr/bin/appd infinity\\n' >/etc/systemd/system/app.service
printf '[Service]\\nExecStart=/usr/bin/nc -lk 0.0.0.0 7000\\n' >/etc/systemd/system/known.service
systemctl daemon-reload; systemctl start app known
"""


def static_program() -> bytes:
    """The smallest program that stays: no loader, whose opening would give it away. x86-64: pause() for ever."""
    code = bytes.fromhex("b822000000 0f05 ebf7".replace(" ", ""))
    base, header = 0x400000, 64 + 56
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, header + len(code), header + len(code), 0x1000)
    return elf + code


class Patient(Guard):
    """Some attacks stop the daemon; while it is down nobody answers."""

    def findings(self, *, all_: bool = False) -> list[dict[str, Any]]:
        answer = self.ask("findings -o jsonl" + (" --all" if all_ else ""))
        return [json.loads(line) for line in answer.out.splitlines()]


@pytest.fixture(scope="module")
def guard(image: Path, packages: dict[str, Path]) -> Iterator[Guard]:
    with Device(image) as device:
        guard = Patient(device)
        device.run(PREPARE, timeout=120)
        device.write("/root/static", static_program(), 0o755)
        guard.install(packages["edgeguard"])
        guard.learned()
        yield guard


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    do: str
    undo: str
    code: str
    subject: str  # a pattern
    severity: str  # at least
    within: float = SHOWN_S


BACKGROUND = "</dev/null >/dev/null 2>&1 & echo $! >/run/act.pid"
END = "kill $(cat /run/act.pid); rm -f /run/act.pid"
UNITS = "/etc/systemd/system"
STATE = "/var/lib/edgeguard"
SITE = "/usr/lib/python3/dist-packages"


def swapped(path: str, how: str) -> tuple[str, str]:
    """(do, undo) of something done to a file that is put back afterwards with all its attributes."""
    return f"cp -a {path} /root/kept; {how}; sleep 1", f"rm -f {path}; mv /root/kept {path}"


def dropped(path: str, text: str = "x") -> tuple[str, str]:
    return f"mkdir -p {path.rpartition('/')[0]}; printf '{text}' >{path}; sleep 1", f"rm {path}"


def restarted(how: str) -> str:
    return f"systemctl stop edgeguard; {how}; systemctl start edgeguard"


WHOAMI = "/usr/bin/whoami"
BASELINE = f"{STATE}/baseline/00000001.egb"
KEYS = "/root/.ssh/authorized_keys"
CRON = "/var/spool/cron/crontabs/root"
MEMFD = """import os
fd = os.memfd_create("still", os.MFD_CLOEXEC)
os.write(fd, open("/root/static", "rb").read())
os.execve(fd, ["quiet"], {})
"""
ATTACKS = [
    # -- files that are swapped
    Attack(
        "rename-over",
        *swapped(WHOAMI, f"cp /usr/bin/id /usr/bin/.w; mv /usr/bin/.w {WHOAMI}"),
        "EG-FILE-002",
        WHOAMI,
        "critical",
    ),
    Attack("hard-link", *swapped(WHOAMI, f"ln -f /usr/bin/id {WHOAMI}"), "EG-FILE-002", WHOAMI, "critical"),
    Attack("symlink", *swapped(WHOAMI, f"ln -sf /tmp/x {WHOAMI}"), "EG-FILE-006", WHOAMI, "high"),
    Attack(
        "alternative",
        *swapped("/etc/alternatives/awk", "ln -sfn /tmp/x /etc/alternatives/awk"),
        "EG-FILE-006",
        "/etc/alternatives/awk",
        "high",
    ),
    Attack(
        "zone-elsewhere",
        *swapped("/etc/localtime", "ln -sfn /tmp/x /etc/localtime"),
        "EG-FILE-006",
        "/etc/localtime",
        "high",
    ),
    Attack(
        "setuid",
        "chmod u+s /usr/bin/find; sleep 1",
        "chmod u-s /usr/bin/find",
        "EG-FILE-005",
        "/usr/bin/find",
        "critical",
    ),
    Attack(
        "capability",
        "setcap cap_setuid+ep /usr/bin/perl; sleep 1",
        "setcap -r /usr/bin/perl",
        "EG-FILE-005",
        "/usr/bin/perl.*",
        "critical",
    ),
    Attack(
        "where-bin-leads",
        "ln -s srv/bin /b; cp -a /usr/bin /srv/bin; mv -T /b /bin; sleep 1",
        "/usr/bin/ln -s usr/bin /b; /usr/bin/mv -T /b /bin; rm -r /srv/bin",
        "EG-FILE-006",
        "/bin",
        "high",
        10,  # with the copy of all programs
    ),
    Attack("home-of-root", "chmod 777 /root; sleep 1", "chmod 700 /root", "EG-FILE-003", "/root", "medium"),
    # -- files that appear where something loads them
    Attack("command", *dropped("/usr/local/bin/ls"), "EG-FILE-001", "/usr/local/bin/ls", "medium"),
    Attack("pth", *dropped(f"{SITE}/x.pth"), "EG-FILE-001", f"{SITE}/x.pth", "medium"),
    Attack("pam-service", *dropped("/etc/pam.d/x"), "EG-FILE-001", "/etc/pam.d/x", "medium"),
    Attack("linker", *dropped("/etc/ld.so.conf.d/x.conf"), "EG-FILE-001", "/etc/ld.so.conf.d/x.conf", "high"),
    Attack(
        "linker-like-dpkg",
        *dropped("/etc/ld.so.conf.d/x.dpkg-y.conf"),
        "EG-FILE-001",
        "/etc/ld.so.conf.d/x.dpkg-y.conf",
        "high",
    ),
    Attack(
        "library-cache",
        "mkdir /srv/evil; cp -L /usr/lib/*-linux-gnu*/libz.so.1 /srv/evil; ldconfig /srv/evil; sleep 1",
        "ldconfig; rm -r /srv/evil",
        "EG-FILE-002",
        "/srv/evil",
        "high",
    ),
    Attack(
        "library-cache-by-hand",
        "mkdir /srv/evil; cp -L /usr/lib/*-linux-gnu*/libz.so.1 /srv/evil; ldconfig -c old -C /root/cache /srv/evil;"
        "cat /root/cache >/etc/ld.so.cache; sleep 1",
        "ldconfig; rm -r /srv/evil /root/cache",
        "EG-FILE-002",
        "/srv/evil",
        "high",
    ),
    Attack(
        "generator",
        *dropped("/etc/systemd/system-generators/x"),
        "EG-PERS-002",
        "/etc/systemd/system-generators/x",
        "high",
    ),
    Attack(
        "drop-in", *dropped(f"{UNITS}/dbus.service.d/x.conf"), "EG-PERS-002", f"{UNITS}/dbus.service.d/x.conf", "high"
    ),
    Attack(
        "user-unit",
        *dropped("/home/alice/.config/systemd/user/x.service"),
        "EG-PERS-002",
        "/home/alice/.*/x.service",
        "high",
    ),
    Attack("tmpfiles", *dropped("/etc/tmpfiles.d/x.conf"), "EG-PERS-004", "/etc/tmpfiles.d/x.conf", "medium"),
    Attack(
        "cron-table",
        f"cp -a {CRON} /root/cron; (crontab -l; echo '0 0 1 1 * id') | crontab -; sleep 1",
        f"mv /root/cron {CRON}",
        "EG-PERS-003",
        CRON,
        "high",
    ),
    Attack(
        "at-job", *dropped("/var/spool/cron/atjobs/a0000101"), "EG-PERS-003", "/var/spool/cron/atjobs/a0000101", "high"
    ),
    Attack("until-restart", *dropped("/run/systemd/system/x.service"), "EG-PERS-002", "/run/.*/x.service", "high"),
    Attack("apt-source", *dropped("/etc/apt/sources.list.d/x.list"), "EG-FILE-001", "/etc/apt/.*/x.list", "medium"),
    Attack(
        "maintainer-script",
        *swapped("/var/lib/dpkg/info/bash.postinst", "echo id >>/var/lib/dpkg/info/bash.postinst"),
        "EG-PERS-004",
        ".*/bash.postinst",
        "medium",
    ),
    # -- accounts
    Attack(
        "half-a-line",
        *swapped("/etc/passwd", "echo 'toor:x: 0:0' >>/etc/passwd"),
        "EG-ACCT-001",
        "user toor",
        "critical",
    ),
    Attack(
        "group-by-number",
        *swapped("/etc/group", "echo friends:x:27:alice >>/etc/group"),
        "EG-ACCT-006",
        "group friends",
        "high",
    ),
    Attack("group-admin", *swapped("/etc/gshadow", "gpasswd -A alice sudo"), "EG-ACCT-006", "group sudo", "high"),
    Attack(
        "ids-of-the-system",
        *swapped("/etc/subuid", "echo alice:0:65536 >>/etc/subuid"),
        "EG-ACCT-006",
        "user alice",
        "high",
    ),
    Attack(
        "key-of-a-service",
        "mkdir -p /var/www/.ssh; cp /root/two.pub /var/www/.ssh/authorized_keys; sleep 1",
        "rm -r /var/www",
        "EG-ACCT-004",
        "www-data SHA256:.*",
        "high",
    ),
    Attack(
        "key-behind-comments",
        *swapped(KEYS, f"(yes '# x' | head -c 2000000; cat /root/two.pub) >>{KEYS}"),
        "EG-ACCT-004",
        f"root {KEYS}",
        "medium",
    ),
    Attack("password-gone", *swapped("/etc/shadow", "passwd -d alice"), "EG-ACCT-003", "user alice", "high"),
    Attack(
        "service-password", *swapped("/etc/shadow", f"usermod -p '{HASH}' svc"), "EG-ACCT-002", "user svc", "medium"
    ),
    Attack(
        "sudo-member", "usermod -aG sudo alice; sleep 1", "gpasswd -d alice sudo", "EG-ACCT-006", "group sudo", "high"
    ),
    Attack(
        "second-key-file",
        "cp /root/two.pub /root/.ssh/authorized_keys2; sleep 1",
        "rm /root/.ssh/authorized_keys2",
        "EG-ACCT-004",
        "root SHA256:.*",
        "high",
    ),
    Attack(
        "sshd-match",
        *dropped("/etc/ssh/sshd_config.d/x.conf", "Match User alice\\nPermitRootLogin yes\\n"),
        "EG-SSH-001",
        "permitrootlogin match .*",
        "high",
    ),
    # -- programs
    Attack(
        "memory-file-system",
        f"cp /bin/sleep /dev/shm/s; /dev/shm/s 600 {BACKGROUND}",
        f"{END}; rm /dev/shm/s",
        "EG-PROC-003",
        "/dev/shm/s",
        "high",
    ),
    Attack(
        "static", f"cp /root/static /tmp/s; /tmp/s {BACKGROUND}", f"{END}; rm /tmp/s", "EG-PROC-003", "/tmp/s", "high"
    ),
    Attack("ended-at-once", "cp /bin/true /tmp/t; /tmp/t; sleep 1", "rm /tmp/t", "EG-PROC-003", "/tmp/t", "high"),
    Attack(
        "loader",
        f"cp /bin/sleep /tmp/l; chmod -x /tmp/l; /lib64/ld-linux-x86-64.so.2 /tmp/l 600 {BACKGROUND}",
        f"{END}; rm /tmp/l",
        "EG-PROC-003",
        "/tmp/l",
        "high",
    ),
    Attack(
        "loader-options",
        f"cp /bin/sleep /tmp/l; /lib64/ld-linux-x86-64.so.2 --argv0 cron /tmp/l 600 {BACKGROUND}",
        f"{END}; rm /tmp/l",
        "EG-PROC-003",
        "/tmp/l",
        "high",
    ),
    Attack(
        "in-private-tmp",
        "systemd-run -q -u web -p PrivateTmp=yes sh -c 'cp /bin/sleep /tmp/z; exec /tmp/z 600'; sleep 1",
        "systemctl stop web",
        "EG-PROC-003",
        "/tmp/z",
        "high",
    ),
    Attack(
        "behind-a-mount",
        f"unshare -m sh -c 'mount --bind /bin/sleep {WHOAMI}; exec {WHOAMI} 600' {BACKGROUND}",
        END,
        "EG-PROC-004",
        WHOAMI,
        "medium",
    ),
    Attack(
        "script",
        f"echo 'read x <>/run/act.fifo' >/tmp/x.sh; mkfifo /run/act.fifo; sh /tmp/x.sh {BACKGROUND}",
        f"{END}; rm /tmp/x.sh /run/act.fifo",
        "EG-PROC-003",
        "/tmp/x.sh",
        "low",
    ),
    Attack(
        "static-memfd",
        f"cat >/run/act.py <<'E'\n{MEMFD}E\npython3 /run/act.py {BACKGROUND}",
        END,
        "EG-PROC-002",
        "memfd:still",
        "critical",
    ),
    Attack(
        "kernel-name",
        f"cp /bin/sleep '/tmp/[kworker'; '/tmp/[kworker' 600 {BACKGROUND}",
        f"{END}; rm '/tmp/[kworker'",
        "EG-PROC-003",
        r"/tmp/\[kworker",
        "high",
    ),
    # -- mounts
    Attack(
        "bound-passwd",
        "(cat /etc/passwd; echo 'toor:x:0:0::/:/bin/sh') >/root/passwd; mount --bind /root/passwd /etc/passwd",
        "umount /etc/passwd",
        "EG-ACCT-001",
        "user toor",
        "critical",
    ),
    Attack(
        "bound-program", f"mount --bind /usr/bin/id {WHOAMI}", f"umount {WHOAMI}", "EG-FILE-002", WHOAMI, "critical"
    ),
    Attack(
        "mount-over-cron", "mount -t tmpfs none /etc/cron.d", "umount /etc/cron.d", "EG-HOST-003", "/etc/cron.d", "high"
    ),
    Attack(
        "state-hidden",
        "mount -t tmpfs none /var/lib/dpkg",
        "umount /var/lib/dpkg",
        "EG-HOST-003",
        "/var/lib/dpkg",
        "high",
    ),
    # -- EdgeGuard itself; those that start it anew take as long as it takes to start
    Attack(
        "own-mask",
        f"ln -s /dev/null {UNITS}/edgeguard.service; sleep 1",
        f"rm {UNITS}/edgeguard.service",
        "EG-HLTH-005",
        f"{UNITS}/edgeguard.service",
        "high",
    ),
    Attack(
        "own-policy",
        *swapped("/usr/lib/edgeguard/policy.d/20-rules.toml", "echo '#' >>/usr/lib/edgeguard/policy.d/20-rules.toml"),
        "EG-HLTH-005",
        ".*/20-rules.toml",
        "critical",
    ),
    Attack(
        "own-key",
        *swapped(f"{STATE}/keys/device.pub", f"echo 00 >{STATE}/keys/device.pub"),
        "EG-FILE-002",
        f"{STATE}/keys/device.pub",
        "high",
    ),
    Attack(
        "only-baseline-damaged",
        restarted(f"cp -a {BASELINE} /root/kept; truncate -s 1000 {BASELINE}"),
        restarted(f"mv /root/kept {BASELINE}"),
        "EG-BASE-005",
        "baseline 00000001.egb",
        "medium",
        15,
    ),
    Attack(
        "only-baseline-gone",
        restarted(f"mv {BASELINE} /root/kept"),
        restarted(f"mv /root/kept {BASELINE}"),
        "EG-BASE-006",
        "baseline",
        "high",
        15,
    ),
    Attack(
        "cache-damaged",
        restarted(f"echo x >{STATE}/observed.db; echo '#' >>/etc/hosts"),
        "sed -i '$d' /etc/hosts",
        "EG-FILE-002",
        "/etc/hosts",
        "high",
        15,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(guard: Guard, attack: Attack) -> None:
    if platform.machine() != "x86_64" and attack.name in ("static", "static-memfd", "loader", "loader-options"):
        pytest.skip("the program is made for x86-64")
    began = time.monotonic()
    acting = guard.device.begin(attack.do)
    try:
        finding = guard.wait_match(attack.code, attack.subject, states=("open", "resolved"), within=attack.within + 10)
        shown = time.monotonic() - began
        out, err = acting.communicate(timeout=60)
    finally:
        guard.device.run(attack.undo, timeout=60)
    assert acting.returncode == 0, out + err
    assert shown <= attack.within
    assert SEVERITIES.index(finding["severity"]) >= SEVERITIES.index(attack.severity)
    guard.wait_resolved(finding["id"], within=15)
    guard.settled()


@dataclass(frozen=True, slots=True)
class Twin:
    name: str
    do: str
    undo: str = "true"


FILES = (
    "/usr/bin/whoami /etc/ssh/sshd_config /etc/cron.d/e2scrub_all /etc/sudoers /etc/pam.d/su /etc/passwd /etc/shadow"
)
TWINS = [
    Twin("rewritten", f"for f in {FILES}; do cp --preserve=all $f $f~; mv $f~ $f; done"),
    Twin("edited-without-change", "sed -i s/nothing-here/x/ /etc/pam.d/su /etc/sudoers /etc/crontab /etc/hosts"),
    Twin("touched", f"touch {FILES}; touch -d 2001-01-01 /etc/hosts"),
    Twin("same-mode", "chmod 755 /usr/bin/whoami; chmod 4755 /usr/bin/su; chown root:root /usr/bin/whoami"),
    Twin("daemon-reload", "systemctl daemon-reload"),
    Twin("known-services", "systemctl restart known app systemd-logind systemd-udevd systemd-journald"),
    Twin(
        "other-logs",
        "echo x >/var/log/a.log; gzip /var/log/a.log; rm /var/log/a.log.gz; journalctl -q --rotate --vacuum-size=1M",
    ),
    Twin("ldconfig", "ldconfig"),
    Twin("library-cache-of-before", "ldconfig -c old; sleep 1; ldconfig -c compat; sleep 1; ldconfig -X", "ldconfig"),
    Twin(
        "library-cache-gone-and-broken",
        "rm /etc/ld.so.cache; sleep 1; echo x >/etc/ld.so.cache; sleep 1; head -c 3000 /dev/zero >/etc/ld.so.cache",
        "ldconfig",
    ),
    Twin(
        "package-lists",
        "cd /var/lib/apt/lists; echo x >x_InRelease; apt-get -q update; rm x_InRelease; apt-get -s install sudo",
    ),
    Twin("same-package-again", "dpkg -i /root/app.deb"),
    Twin("ourselves-again", "dpkg -i /root/edgeguard_*.deb; sleep 5"),
    Twin(
        "compiled",
        f"mkdir /root/pyc; for m in psutil cbor2; do cp -a {SITE}/$m/__pycache__ /root/pyc/$m; done; "
        f"python3 -m py_compile {SITE}/psutil/_common.py; rm -rf {SITE}/cbor2/__pycache__; python3 -c 'import cbor2'",
        # Roots differ in what was compiled when they were made: put back exactly what was there.
        f"for m in psutil cbor2; do rm -rf {SITE}/$m/__pycache__; "
        f"[ ! -d /root/pyc/$m ] || mv /root/pyc/$m {SITE}/$m/__pycache__; done",
    ),
    Twin("locks-of-groups", "groupadd x; groupdel x"),
    Twin(
        "password",
        f"cp -a /etc/shadow /root/kept; usermod -p '{HASH}' alice; chage -M 90 alice; passwd -l alice",
        "mv /root/kept /etc/shadow",
    ),
    Twin("account-tools", "pwconv; grpconv; pwck -s; usermod --add-subuids 300000-365535 alice; chage -E -1 alice"),
    Twin("key-taken-away", f"cp -a {KEYS} /root/kept; rm {KEYS}; sleep 1", f"mv /root/kept {KEYS}"),
    Twin(
        "sandboxed",
        "systemd-run -q --wait -p PrivateTmp=yes -p ProtectSystem=strict -p ProtectHome=yes -p DynamicUser=yes sleep 1",
    ),
    Twin("changed-root", "unshare -m sh -c 'mount --bind / /mnt; chroot /mnt sleep 1'"),
    Twin(
        "logins",
        "su -l alice -c 'sleep 1'; sudo -u alice id; systemd-run -q -p PAMName=login -p User=alice --wait sleep 1",
    ),
    Twin(
        "not-run", "cp /bin/true /tmp/x; cp /bin/true /var/tmp/x; chmod 755 /tmp/x /var/tmp/x", "rm /tmp/x /var/tmp/x"
    ),
    Twin(
        "homes",
        "mkdir /srv/x; cp /bin/true /srv/x;su -l alice -c 'cp /bin/true t; echo sleep 1 >a.sh; sh a.sh; mkdir .config'",
        "rm -r /srv/x /home/alice/t /home/alice/a.sh /home/alice/.config",
    ),
    Twin("root-script", "echo sleep 1 >/root/a.sh; sh /root/a.sh; rm /root/a.sh"),
    Twin(
        "datagram-client",
        'python3 -c \'import socket, time; s = socket.socket(2, 2); s.sendto(b"x", ("127.0.0.1", 53)); time.sleep(2)\'',
    ),
    Twin(
        "lease-client",
        "python3 -c 'import socket, time; s = socket.socket(2, 2); s.bind((\"0.0.0.0\", 68)); time.sleep(2)'",
    ),
    Twin(
        "stronger-setting",
        "f=/proc/sys/net/ipv4/conf/all/rp_filter; cat $f >/run/was; echo 1 >$f; sleep 1",
        "cat /run/was >/proc/sys/net/ipv4/conf/all/rp_filter",
    ),
    Twin("memory-mount", "mount -t tmpfs none /mnt; cp /bin/true /mnt", "umount /mnt"),
    Twin(
        "other-namespaces",
        "unshare -mpfnu --mount-proc sh -c 'mount -t tmpfs none /tmp; mount --bind /bin/true /usr/bin/whoami; sleep 1'",
    ),
    Twin(
        "other-name",
        "cp -a /etc/hostname /root/kept; echo other >/etc/hostname",
        "rm /etc/hostname; mv /root/kept /etc/hostname",
    ),
    Twin(
        "other-zone",
        "cp -a /etc/localtime /root/kept; ln -sfn /usr/share/zoneinfo/Europe/Rome /etc/localtime",
        "mv -f /root/kept /etc/localtime",
    ),
    Twin(
        "other-resolver",
        "touch /etc/resolv.conf; cp /etc/resolv.conf /root/kept; echo 'nameserver 127.0.0.53' >/etc/resolv.conf",
        "cat /root/kept >/etc/resolv.conf",
    ),
    Twin(
        "transient-units",
        "systemd-run -q --wait sleep 1; systemd-run -q --on-active=1 true; systemctl start systemd-tmpfiles-clean",
    ),
    Twin("daily-jobs", "run-parts /etc/cron.daily; systemd-sysusers; udevadm trigger; udevadm settle"),
    Twin("another-address", "ip address add 10.8.8.8/24 dev lo; sleep 1; ip address del 10.8.8.8/24 dev lo"),
]


def test_libraries_that_the_configuration_names(guard: Guard) -> None:
    """`make install`, and a package with a file of the configuration: new files are told, no other directory is."""
    library = "/usr/lib/*-linux-gnu*/libz.so.1"
    guard.settled()
    try:
        guard.device.run(
            f"cp -L {library} /usr/local/lib/liblab.so.1; ldconfig; sleep 1; mkdir /root/lab; cd /root/lab;"
            "mkdir -p DEBIAN opt/lab etc/ld.so.conf.d; echo /opt/lab >etc/ld.so.conf.d/lab.conf;"
            f"cp -L {library} opt/lab/liblab.so.2; echo activate-noawait ldconfig >DEBIAN/triggers;"
            "printf 'Package: lab\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n' >DEBIAN/control;"
            "dpkg-deb -b . ../lab.deb; dpkg -i ../lab.deb; sleep 3; ldconfig -p | grep -q /opt/lab/; dpkg -P lab",
            timeout=90,
        ).ok()
        time.sleep(QUIET_S)
        found = guard.findings(all_=True)
        assert [f["subject"] for f in found if f["kind"] == "library_dir" and f["subject"] != "/srv/evil"] == []
    finally:
        guard.device.run("dpkg -P lab; rm -rf /usr/local/lib/lib[lz]*.so.1 /opt/lab /root/lab*; ldconfig")


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_twin(guard: Guard, twin: Twin) -> None:
    guard.settled()
    before = {(f["id"], f["count"]) for f in guard.findings(all_=True)}
    try:
        guard.device.run(twin.do, timeout=90)
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            time.sleep(0.5)  # nothing to wait for: silence is what is asked
            found = [f for f in guard.findings(all_=True) if (f["id"], f["count"]) not in before]
            loud = [f for f in found if SEVERITIES.index(f["severity"]) >= SEVERITIES.index("medium")]
            assert [(f["code"], f["subject"], f["title"]) for f in loud] == []
    finally:
        guard.device.run(twin.undo)


def test_every_pattern_is_one() -> None:
    for attack in ATTACKS:
        re.compile(attack.subject)
