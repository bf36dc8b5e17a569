"""A program that has been running for long opens a port: noticed in time, though nothing was started shortly before."""

from __future__ import annotations

import json
import time

import pytest

from tests.device.guard import NOTICE_S, Guard

pytestmark = pytest.mark.device

# Longer than the looks that follow a start of a program; and between the ports no clock of ours may tick by chance.
QUIET_S = 7.0
APART_S = 2.7
LATE = """import json, socket, sys, time
kinds = {"tcp": (socket.AF_INET, socket.SOCK_STREAM), "tcp6": (socket.AF_INET6, socket.SOCK_STREAM),
         "udp": (socket.AF_INET, socket.SOCK_DGRAM), "udp6": (socket.AF_INET6, socket.SOCK_DGRAM)}
when, kept = {}, []
time.sleep(%f)
for number, (name, (family, kind)) in enumerate(kinds.items()):
    time.sleep(%f)
    one = socket.socket(family, kind)
    one.setsockopt(41, 26, 1) if family == socket.AF_INET6 else None
    one.bind(("", 6100 + number))
    one.listen() if kind == socket.SOCK_STREAM else None
    when[name] = time.time()
    kept.append(one)
time.sleep(15)
with open("/run/late.part", "w") as file: json.dump(when, file)
import os; os.rename("/run/late.part", "/run/late.json"); time.sleep(600)
"""
SUBJECTS = {"tcp": "tcp/0.0.0.0:6100", "tcp6": "tcp/[::]:6101", "udp": "udp/0.0.0.0:6102", "udp6": "udp/[::]:6103"}


def test_late_listeners(guard: Guard) -> None:
    doctor = guard.ask("doctor").out
    guard.device.write("/root/late.py", (LATE % (QUIET_S, APART_S)).encode())
    guard.device.run("systemd-run --unit=late python3 /root/late.py").ok()
    # Nothing is asked of the device meanwhile: each command would be a start of a program.
    time.sleep(QUIET_S + len(SUBJECTS) * APART_S + 17)
    try:
        when = json.loads(guard.device.run("cat /run/late.json").ok().out)
        found = {finding["subject"]: finding for finding in guard.findings()}
        told = first_told(guard)
    finally:
        guard.device.run("systemctl stop late")
    late = {}
    for name, subject in SUBJECTS.items():
        assert subject in found, f"{subject} is missing; {doctor}"
        assert found[subject]["actor"]["exe"].startswith("/usr/bin/python3")
        late[name] = told[subject] - when[name]
    print("; ".join(f"{name} {seconds:.2f} s" for name, seconds in late.items()))
    assert max(late.values()) <= NOTICE_S, f"{late}; {doctor}"


def first_told(guard: Guard) -> dict[str, float]:
    """When the journal first named each subject: findings give the time in whole seconds only."""
    told: dict[str, float] = {}
    for line in guard.device.run("journalctl -q -u edgeguard -o json").ok().out.splitlines():
        entry = json.loads(line)
        told.setdefault(entry.get("EDGEGUARD_SUBJECT", ""), int(entry["__REALTIME_TIMESTAMP"]) / 1e6)
    return told
