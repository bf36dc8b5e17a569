"""The unit files: their exposure as systemd itself counts it, and what must never be in them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeguard.collector.main import EX_USAGE
from edgeguard.collector.work import POLL_S
from edgeguard.daemon.baselines import LOAD_S

TOP = Path(__file__).resolve().parents[3]
UNITS = TOP / "systemd"
# systemd 252 counts; later ones count a little less.
EXPOSURE = {
    "edgeguard": 2.8,
    "edgeguard-uplink": 1.3,
    "edgeguard-collector": 1.3,
    "edgeguard-collector-work@": 1.3,
    "edgeguard-act": 4.6,
}
FRONT, WORKER = "edgeguard-collector.service", "edgeguard-collector-work@.service"
HIDING = ("PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "PrivateIPC", "ProtectProc", "ProcSubset")


def lines(unit: str) -> dict[str, list[str]]:
    """The unit's settings, repeated ones in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(("unit", "most"), EXPOSURE.items())
def test_exposure(unit: str, most: float) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / f"{unit}.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= most


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_systemd_finds_nothing_to_say_about_a_unit(unit: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    here, programs = tmp_path / "usr/lib/systemd/system", tmp_path / "usr/bin"
    shutil.copytree(UNITS, here)
    shutil.copytree(TOP / "packaging/bin", programs)
    for program in ("env", "python3"):
        shutil.copy("/bin/true", programs / program)
    for target in ("sysinit", "shutdown"):
        (here / f"{target}.target").write_text("[Unit]\n")
    command = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", f"usr/lib/systemd/system/{unit}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert not [line for line in done.stderr.splitlines() if "edgeguard" in line]
    assert done.returncode == 0, done.stderr


def test_a_worker_is_shut_in_like_the_front_and_writes_nothing() -> None:
    front, worker = lines(FRONT), lines(WORKER)
    same = ("ConditionPathExists", "User", "Group", "UMask", "EnvironmentFile", "MemoryMax", "TasksMax")
    for key in (*same, *list(front)[list(front).index("LimitCORE") :]):
        assert worker[key] == front[key], key
    assert not {"StateDirectory", "ReadWritePaths", "DynamicUser"} & set(worker)


def test_a_worker_comes_again_unless_its_configuration_is_wrong() -> None:
    worker = lines(WORKER)
    assert worker["Restart"] == ["on-failure"]
    assert worker["RestartPreventExitStatus"] == [str(EX_USAGE)]
    assert worker["StartLimitIntervalSec"] == ["0"]
    assert int(worker["TimeoutStopSec"][0]) > POLL_S + 5  # what `work` itself waits for the batch at work


def test_the_sensor_sees_what_it_watches() -> None:
    unit = lines("edgeguard.service")
    for key in HIDING:
        assert key not in unit, f"{key} hides what is to be watched"
    assert unit["ProtectHome"] == ["read-only"]
    assert "ProtectKernelModules" not in unit, "it hides /usr/lib/modules"


def test_the_sensor_has_no_network() -> None:
    unit = lines("edgeguard.service")
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX AF_NETLINK"]
    assert unit["IPAddressDeny"] == ["any"]


@pytest.mark.parametrize("name", ["edgeguard-uplink.service", FRONT, WORKER])
def test_who_talks_to_the_network_has_no_capability(name: str) -> None:
    unit = lines(name)
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["AmbientCapabilities"] == [""]
    assert unit["User"] != ["root"]


def test_the_last_status_and_the_sockets_survive_a_stop() -> None:
    assert lines("edgeguard.service")["RuntimeDirectoryPreserve"] == ["yes"]


def test_no_python_starts_without_isolation() -> None:
    for unit in sorted(UNITS.glob("*.service")):
        (start,) = lines(unit.name)["ExecStart"]
        if unit.name in {FRONT, WORKER}:  # with libraries of an environment of its own, as its launcher
            assert start.startswith("/usr/bin/env ${PYTHON} -I /usr/bin/edgeguard-collector "), unit.name
        else:
            assert not start.startswith("/usr/bin/python3") or "python3 -IS" in start, unit.name
    for launcher in sorted((TOP / "packaging/bin").iterdir()):
        # The collector may use libraries from an environment of its own, so it keeps site-packages.
        isolation = "-I" if launcher.name == "edgeguard-collector" else "-IS"
        assert launcher.read_text().startswith(f"#!/usr/bin/python3 {isolation}\n"), launcher.name
        assert launcher.stat().st_mode & 0o111, launcher.name


def test_only_the_daemon_reaches_the_remediations() -> None:
    unit = lines("edgeguard-act.socket")
    assert (unit["SocketUser"], unit["SocketGroup"], unit["SocketMode"]) == (["edgeguard"], ["root"], ["0600"])


def test_the_daemon_gives_up_before_systemd_does() -> None:
    assert int(lines("edgeguard.service")["TimeoutStartSec"][0]) > LOAD_S


def test_the_sealer_reaches_the_collectors_key() -> None:
    """It is neither the uplink's user nor in its group, and has no capability: only the way for others is left."""
    table = [line.split() for line in (UNITS / "edgeguard.tmpfiles").read_text().splitlines() if line[:1] == "d"]
    modes = {path: int(mode, 8) for _kind, path, mode, *_ in table}
    for folder in ("/etc/edgeguard", "/etc/edgeguard/uplink"):
        assert modes[folder] & 0o001, folder
        assert not modes[folder] & 0o022, folder


def test_a_missing_spool_does_not_keep_the_daemon_from_starting() -> None:
    assert lines("edgeguard.service")["ReadWritePaths"] == ["-/var/spool/edgeguard"]


@pytest.mark.parametrize("name", ["identity-credential", "identity-tpm2"])
def test_a_drop_in_for_the_identity_gives_what_it_says_and_no_more(name: str, tmp_path: Path) -> None:
    """One device and one group more is a tenth of a point; and none of what systemd does not know."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    drop_in = (TOP / f"packaging/dropins/{name}.conf").read_text()
    given = {line for line in drop_in.splitlines() if line and not line.startswith("#")}
    assert (
        given
        == {
            "identity-credential": {
                "[Service]",
                "LoadCredentialEncrypted=edgeguard-identity:/etc/credstore.encrypted/edgeguard-identity",
            },
            "identity-tpm2": {"[Service]", "DeviceAllow=/dev/tpmrm0 rw", "SupplementaryGroups=tss"},
        }[name]
    )
    unit = (UNITS / "edgeguard.service").read_text().replace("[Install]", drop_in + "[Install]")
    (tmp_path / "edgeguard.service").write_text(unit)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(tmp_path / "edgeguard.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Unknown" not in done.stderr
    match = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= EXPOSURE["edgeguard"] + (0.1 if name == "identity-tpm2" else 0)
