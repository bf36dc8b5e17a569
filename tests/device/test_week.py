"""A week of a device that is left alone: nothing of severity medium or higher is told of what its own timers, upgrades,
logs and one operator do, and all that was explained is listed. With `--long` only.

A container cannot move its clock (CLOCK_REALTIME is the host's, and time namespaces do not cover it), so a day is what
happens in a day: the service of every enabled timer, cron's directories, grown logs, a new lease, an upgrade that the
archive has had since, a sweep, and a look at every content; a restart on some days, and on some an operator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device import older
from tests.device.archive import Archive
from tests.device.guard import Guard
from tests.device.lab import Device
from tests.device.upgrading import AFTER, judged

pytestmark = pytest.mark.device

DAYS = 7
RESTARTS, OPERATED, WEEKLY = (2, 6), (1, 5), 7
# What the archive has new on each day: nothing that unattended-upgrades keeps back.
NEWS = (
    ("tree", "ca-certificates"),
    ("python3-idna", "python3-six"),
    ("screen",),
    ("logrotate", "anacron"),
    ("nano", "gawk"),
    ("mtr-tiny", "whois"),
    ("rsyslog", "dos2unix"),
)
MEDIUM = ("medium", "high", "critical")
# The root's timers are masked for the other tests. The operator has a password and a key, and is in the group sudo.
PREPARE = """set -e
systemctl unmask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
systemctl enable -q --now apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer man-db.timer \\
    logrotate.timer fstrim.timer cron.service ssh.service
printf 'APT::Periodic::Update-Package-Lists "1";\\nAPT::Periodic::Unattended-Upgrade "1";\\n' \\
    >/etc/apt/apt.conf.d/20auto-upgrades
useradd -m -s /bin/bash -G sudo ann; echo ann:a-long-word | chpasswd
install -d -m 700 -o ann /home/ann/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/operator-key
install -m 600 -o ann /root/operator-key.pub /home/ann/.ssh/authorized_keys
"""
# Each timer's service, one after the other, as the timer would start it; apt's own stamps say that a day has passed.
TIMERS = """rm -f /var/lib/apt/periodic/*-stamp
for timer in $(systemctl list-units -q --plain --no-legend --type=timer --state=active | cut -d' ' -f1); do
    unit=$(systemctl show -P Unit $timer); systemctl start $unit && echo $unit || echo "$unit failed"
done"""
LOGS = """for name in syslog.test dpkg.log apt/history.log alternatives.log; do
    [ -e /var/log/$name ] && for _ in $(seq 4000); do echo "$(date) a line of day {day}"; done >>/var/log/$name
done; for _ in $(seq 300); do echo "a line of day {day}"; done | logger -t daily
logrotate -f /etc/logrotate.conf"""
JOURNAL = "journalctl -q --rotate; journalctl -q --vacuum-size=8M; journalctl -q --vacuum-time=1s; true"
CRON = "cd /; for name in hourly daily {more}; do run-parts /etc/cron.$name; done"
# As a DHCP client writes it: a new file that takes the place of the old one.
LEASE = """printf 'nameserver 10.0.0.{day}\\n' >/etc/resolv.conf.dhclient-new.$$
mv -f /etc/resolv.conf.dhclient-new.$$ /etc/resolv.conf"""
OPERATOR = """exec 2>&1; ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /root/operator-key \\
    ann@127.0.0.1 '
echo a note of day {day} >>notes; printf "%s\\n" "%s/note/remark/" wq | ed -s notes
sudo() {{ echo a-long-word | command sudo -S -p "" "$@"; }}
sudo systemctl restart cron.service; sudo journalctl -n 5 --no-pager; sudo edgeguard status; sudo apt-get -q update
crontab -l; ps -ef; ss -tln; df -h'"""


def upgraded(days: int) -> tuple[str, ...]:
    return tuple(name for names in NEWS[:days] for name in names)


@pytest.fixture(scope="module")
def days(long: bool) -> int:
    if not long:
        pytest.skip("a week takes ten minutes: make test-device LONG=1 ONLY=week")
    return DAYS


@pytest.fixture(scope="module")
def guard(image: Path, packages: dict[str, Path], suite: str, days: int) -> Iterator[Guard]:
    with Device(image, net="veth") as device, Archive(device, device.host_address):
        guard = Guard(device)
        older.age(device, suite, upgraded(days), beside="unattended-upgrades man-db ed")
        device.run(PREPARE, timeout=120).ok()
        device.run("apt-mark hold " + " ".join(upgraded(days))).ok()
        guard.install(packages["edgeguard"])
        guard.learned()
        yield guard


def test_a_week_alone_is_quiet(guard: Guard, days: int) -> None:
    device = guard.device
    told: dict[str, dict[str, Any]] = {}
    since = older.versions(device)
    ran: set[str] = set()
    all_said: dict[str, None] = {}
    for day in range(1, days + 1):
        device.run("apt-mark unhold " + " ".join(NEWS[day - 1])).ok()
        services, said = one_day(guard, day)
        now = older.versions(device)
        assert not [name for name in NEWS[day - 1] if now[name] == since[name]], f"day {day}: not upgraded"
        print(f"day {day}: {len(services)} services, {len(said)} explained", flush=True)
        ran |= set(services)
        all_said |= dict.fromkeys(said)
        found = {finding["id"]: finding for finding in guard.findings(all_=True) if finding["subject"] != AFTER}
        bad = [(f["code"], f["subject"]) for f in found.values() if f["severity"] in MEDIUM]
        assert not bad, f"day {day}: {bad}\n{guard.ask('log -n 100').out}"
        told |= found
    print(f"services of timers: {', '.join(sorted(ran))}")
    assert not [name for name in ran if name.endswith(" failed")]
    assert {"apt-daily.service", "apt-daily-upgrade.service", "logrotate.service", "man-db.service"} <= ran
    print("\n".join([f"{len(all_said)} explained:", *all_said, f"{len(told)} of low severity:"]))
    print("\n".join(f"{f['severity']} {f['code']} {f['subject']}" for f in told.values()))
    assert all(any(f" {name} " in f" {line} " for line in all_said) for name in upgraded(days)), all_said


def one_day(guard: Guard, day: int) -> tuple[set[str], list[str]]:
    """A day's work: the services that timers started, and what was explained."""
    device = guard.device
    if day in OPERATED:
        seen = device.run(OPERATOR.format(day=day), timeout=120)
        assert "Filesystem" in seen.out, seen
        assert "Verdict" in seen.out or "OK" in seen.out, seen
    device.run(LEASE.format(day=day)).ok()
    device.run(LOGS.format(day=day), timeout=120).ok()
    ran = set(device.run(TIMERS, timeout=900).ok().out.splitlines())
    judged(guard)
    device.run(CRON.format(more="weekly monthly" if day == WEEKLY else ""), timeout=300)
    device.run(JOURNAL).ok()
    said = explained(guard)  # a restarted daemon shows what it has told since
    if day in RESTARTS:
        device.reboot()
        guard.learned()
    guard.ask("scan --quick")
    guard.ask("scan")
    return ran, said


def explained(guard: Guard) -> list[str]:
    """What the records say of packages and their files, in words."""
    lines = guard.ask("log -n 5000 -o jsonl").out.splitlines()
    records = [json.loads(line) for line in lines]
    return [str(record["text"]) for record in records if record["type"] == "upgrade"]
