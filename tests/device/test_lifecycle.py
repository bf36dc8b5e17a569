"""Install, run, crash, restart, upgrade, remove, purge: on a clean device each time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.guard import Guard
from tests.device.lab import Device

pytestmark = pytest.mark.device

Boot = Callable[..., Device]
ACTIVE_S = 10.0  # after the installation
BACK_S = 5.0  # after kill -9
LEFT = "find / /run -xdev -name '*edgeguard*' ! -path '/root/*' ! -path '/var/log/*'"  # the journal is not ours


@pytest.fixture
def fresh(boot: Boot, packages: dict[str, Path]) -> Guard:
    """EdgeGuard just installed on a clean device."""
    device = boot()
    guard = Guard(device)
    guard.install(packages["edgeguard"])
    return guard


def main_pid(guard: Guard) -> int:
    return int(guard.device.run("systemctl show -P MainPID edgeguard").ok().out)


def test_installs_learns_and_is_well(fresh: Guard) -> None:
    fresh.device.wait("systemctl is-active edgeguard", timeout=ACTIVE_S)
    document = fresh.learned()
    assert document["policy"]["trust"] == "local"
    assert document["policy"]["mode"] == "audit"
    status = fresh.ask("status")
    assert status.code == 0, status.out + fresh.ask("findings").out
    assert status.out.startswith("OK")
    assert all(len(line) <= 80 for line in status.out.splitlines())
    assert len(status.out.splitlines()) <= 24
    assert fresh.device.run("systemctl --failed --no-legend").out == ""
    shown = fresh.device.run("systemctl show -P StatusText edgeguard").out
    assert shown.startswith("OK")
    assert fresh.ask("doctor").code in (0, 1)


def test_a_change_while_it_was_down(fresh: Guard) -> None:
    fresh.learned()
    fresh.device.run("systemctl stop edgeguard").ok()
    stopped = fresh.ask("status")
    assert stopped.code == 3, "nobody may take the last status for the present one"
    assert stopped.out.startswith("UNKNOWN")
    fresh.device.run("printf '#!/bin/sh\\n' >/usr/sbin/late; chmod 755 /usr/sbin/late; echo '# x' >>/etc/hosts").ok()
    fresh.device.run("systemctl start edgeguard").ok()
    finding = fresh.wait_open("EG-FILE-001", "/usr/sbin/late", within=60)
    assert finding["origin"] == "down"
    assert "not running" in fresh.ask(f"explain {finding['id']}").out


def test_killed_it_is_back_and_learns_nothing(fresh: Guard) -> None:
    before = fresh.learned()
    fresh.device.run("chmod 777 /etc/hosts").ok()
    finding = fresh.wait_open("EG-FILE-003", "/etc/hosts")
    time.sleep(1)  # the ledger is on disk within half a second; what is younger is found anew
    pid = main_pid(fresh)
    began = time.monotonic()
    fresh.device.run(f"kill -9 {pid}").ok()
    fresh.device.wait(
        f"systemctl is-active edgeguard && [ $(systemctl show -P MainPID edgeguard) != {pid} ]", timeout=BACK_S
    )
    assert time.monotonic() - began <= BACK_S
    after = fresh.learned()
    assert after["policy"]["revision"] == before["policy"]["revision"]
    still = fresh.wait_open("EG-FILE-003", "/etc/hosts")
    assert still["id"] == finding["id"]
    assert still["first_seen"] == finding["first_seen"]


def test_a_reboot_keeps_baseline_and_findings(fresh: Guard) -> None:
    before = fresh.learned()
    fresh.device.run("chmod 777 /etc/hosts").ok()
    finding = fresh.wait_open("EG-FILE-003", "/etc/hosts")
    fresh.device.stop()
    fresh.device.start()
    after = fresh.learned()
    assert after["policy"]["revision"] == before["policy"]["revision"]
    assert fresh.wait_open("EG-FILE-003", "/etc/hosts")["id"] == finding["id"]


def test_a_hang_is_ended_by_the_watchdog(fresh: Guard) -> None:
    """SIGSTOP stands for any hang; the watchdog is shortened so that the test need not wait a minute."""
    fresh.learned()
    fresh.device.write("/etc/systemd/system/edgeguard.service.d/short.conf", "[Service]\nWatchdogSec=4\n")
    fresh.device.run("systemctl daemon-reload; systemctl restart edgeguard").ok()
    pid = main_pid(fresh)
    fresh.device.run(f"kill -STOP {pid}").ok()
    fresh.device.wait(
        f"systemctl is-active edgeguard && [ $(systemctl show -P MainPID edgeguard) != {pid} ]", timeout=30
    )
    assert "atchdog" in fresh.journal()


def test_upgrade_remove_purge(fresh: Guard, packages: dict[str, Path]) -> None:
    before = fresh.learned()
    pid = main_pid(fresh)
    fresh.device.run(f"DEBIAN_FRONTEND=noninteractive dpkg -i /root/{packages['edgeguard'].name}", timeout=120).ok()
    assert main_pid(fresh) != pid, "an upgrade restarts the daemon"
    after = fresh.learned()
    assert after["policy"]["revision"] == before["policy"]["revision"], "an upgrade must not move the baseline"

    fresh.device.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y remove edgeguard", timeout=120).ok()
    assert fresh.device.run("ls /var/lib/edgeguard/keys/device.key").code == 0, "removal keeps keys and evidence"
    assert fresh.device.run("systemctl is-active edgeguard edgeguard-act.socket edgeguard-uplink.path").code != 0

    fresh.device.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge edgeguard", timeout=120).ok()
    assert fresh.device.run(LEFT).out == ""
    assert fresh.device.run("systemctl --failed --no-legend").out == ""


def test_both_packages_together_and_alone(boot: Boot, packages: dict[str, Path]) -> None:
    device = boot()
    if device.run("dpkg -s python3-aiohttp").code:
        pytest.skip("this root has no python3-aiohttp")
    guard = Guard(device)
    guard.install(packages["edgeguard-collector"])
    device.run("edgeguard-collector --help").ok()
    guard.install(packages["edgeguard"])
    device.run("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge edgeguard edgeguard-collector", timeout=120).ok()
    assert device.run(LEFT).out == ""
