"""Packages come and go on a booted device, by apt, unattended-upgrades and dpkg: what they bring is no finding, and
what somebody slips in meanwhile is.

The packages are the Debian archive's own, in the versions that it has today.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.archive import Archive
from tests.device.guard import Guard
from tests.device.lab import Device
from tests.device.upgrading import APT, BY_NATURE, apt, files, judged, told

pytestmark = pytest.mark.device

# What has grown in other ways than those of test_upgrade_noise.py.
MANY = """vim-tiny less nano rsync curl python3-yaml apparmor at libglib2.0-bin tree jq file lsof git gnupg python3-gi
tmux libpam-cap ssl-cert bash-completion"""
STANDING = "openssl sudo cron systemd dpkg python3-cbor2 libc-bin bash"


@pytest.fixture(scope="module")
def guard(image: Path, packages: dict[str, Path]) -> Iterator[Guard]:
    with Device(image, net="veth") as device, Archive(device, device.host_address):
        guard = Guard(device)
        device.run("apt-get -q update", timeout=300).ok()
        guard.install(packages["edgeguard"])
        guard.learned()
        yield guard


def test_many_packages_are_installed_again_and_removed(guard: Guard) -> None:
    apt(guard, f"install {' '.join(MANY.split())}")
    left = {f["subject"] for f in files(guard)} - BY_NATURE
    assert left == set(), told(guard)
    assert "rsync" in told(guard)
    assert "all as signed by the archive" in told(guard)
    apt(guard, f"install --reinstall {' '.join(MANY.split())} {STANDING}")
    left = {f["subject"] for f in files(guard)} - BY_NATURE
    assert left == set(), told(guard)
    apt(guard, "purge rsync jq tree nano")
    apt(guard, "remove tmux python3-yaml lsof")
    left = {f["subject"] for f in files(guard)} - BY_NATURE
    assert left == set(), told(guard)
    assert "rsync" in told(guard)
    assert "removed" in told(guard)


def test_what_came_with_a_package_is_guarded_from_then_on(guard: Guard) -> None:
    apt(guard, "install tree")
    guard.device.run("echo x >>/usr/bin/tree").ok()
    finding = guard.wait_open("EG-FILE-002", "/usr/bin/tree")
    (digest,) = {"sha256", "blake2b"} & finding["observed"].keys()  # as the processor has it
    assert finding["expected"][digest] != finding["observed"][digest]
    apt(guard, "install --reinstall tree")
    guard.wait_resolved(finding["id"])


def test_a_restart_forgets_nothing(guard: Guard) -> None:
    guard.device.run("systemctl restart edgeguard").ok()
    guard.learned()
    guard.ask("scan --quick")
    assert {f["subject"] for f in files(guard)} - BY_NATURE == set()


def test_an_upgrade_while_the_daemon_is_down(guard: Guard) -> None:
    guard.device.run("systemctl stop edgeguard").ok()
    guard.device.run(f"{APT} install jq python3-yaml", timeout=300).ok()
    guard.device.run("apt-get clean; echo x >/usr/bin/beside; echo x >>/usr/bin/jq; systemctl start edgeguard").ok()
    guard.learned()
    judged(guard)
    guard.wait_open("EG-FILE-002", "/usr/bin/jq")
    guard.wait_open("EG-FILE-001", "/usr/bin/beside")
    assert {f["subject"] for f in files(guard)} - BY_NATURE == {"/usr/bin/jq", "/usr/bin/beside"}
    guard.device.run("rm /usr/bin/beside").ok()
    apt(guard, "install --reinstall jq")
    guard.settled("EG-PORT-.*|EG-ACCT-.*|EG-FILE-001|EG-PROC-.*|EG-HLTH-.*")


SLIPPED = """set -e
slip() { # after the file is there: what an intruder does meanwhile
    for _ in $(seq 600); do [ -e "$1" ] && break; sleep 0.05; done
    eval "$2"
}
slip /usr/bin/nano 'chmod u+s /usr/bin/nano' &
slip /usr/bin/nano 'echo x >/usr/bin/nano-helper' &
slip /usr/bin/rsync 'sleep 0.3; cp /bin/true /usr/bin/rsync' &
slip /usr/bin/tmux 'sleep 0.3; mv /usr/bin/tmux /usr/bin/.t; ln -s .t /usr/bin/tmux' &
yaml=/usr/lib/python3/dist-packages/yaml/nodes.py
slip $yaml "sleep 0.3; echo 'import os' >>$yaml" &
slip /etc/default/rsync 'sleep 0.5; echo RSYNC_ENABLE=true >>/etc/default/rsync' &
wait
"""


def test_what_is_slipped_in_is_found(guard: Guard) -> None:
    device = guard.device
    device.run(f"{APT} purge nano rsync tmux python3-yaml; rm -f /usr/bin/.t", timeout=300)
    judged(guard)
    before = {f["subject"] for f in files(guard)}
    device.write("/root/slip", SLIPPED, 0o755)
    device.begin("sh /root/slip")
    apt(guard, "install nano rsync tmux python3-yaml")
    device.run("cp /bin/true /usr/lib/python3/dist-packages/yaml/__pycache__/cyaml.cpython-3*.pyc").ok()
    for code, subject in (
        ("EG-FILE-005", "/usr/bin/nano"),
        ("EG-FILE-001", "/usr/bin/nano-helper"),
        ("EG-FILE-002", "/usr/bin/rsync"),
        ("EG-FILE-006", "/usr/bin/tmux"),
        ("EG-FILE-002", "/usr/lib/python3/dist-packages/yaml/nodes.py"),
    ):
        guard.wait_open(code, subject, within=20)
    found = {f["subject"] for f in files(guard)} - before
    assert any(subject.endswith(".pyc") and "cyaml" in subject for subject in found), found
    assert "/etc/default/rsync" in found, found
    device.run(f"{APT} purge nano rsync tmux python3-yaml; rm -f /usr/bin/.t /usr/bin/nano-helper", timeout=300).ok()
    judged(guard)


def test_a_package_that_no_archive_vouches_for(guard: Guard) -> None:
    device = guard.device
    script = """set -e; rm -rf /root/own; mkdir -p /root/own/DEBIAN /root/own/usr/bin /root/own/usr/lib/own
printf 'Package: own-tool\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: A <a@example.org>\\nDescription: x\\n' \\
    >/root/own/DEBIAN/control
echo '#!/bin/sh' >/root/own/usr/bin/own-tool; chmod 755 /root/own/usr/bin/own-tool
for n in 1 2 3 4 5; do echo $n >/root/own/usr/lib/own/$n; done
dpkg-deb --root-owner-group -b /root/own /root/own.deb"""
    device.run(script).ok()
    before = {f["subject"] for f in files(guard)}
    device.run("dpkg -i /root/own.deb").ok()
    judged(guard)
    finding = guard.wait_open("EG-PKG-002", "own-tool")
    assert finding["details"]["version"] == "1.0"
    assert {f["subject"] for f in files(guard)} == before
    device.run("echo x >>/usr/bin/own-tool").ok()
    tampered = guard.wait_open("EG-FILE-002", "/usr/bin/own-tool")
    device.run("dpkg -P own-tool").ok()
    judged(guard)
    guard.wait_resolved(finding["id"])
    guard.wait_resolved(tampered["id"])


EVIL = """#!/bin/sh
# A hook of somebody else's, run after ours: another package takes the place of the one that was verified.
set -e
while read -r line; do case $line in */less_*) deb=${line##* };; esac; done
[ -n "$deb" ] || exit 0
rm -rf /root/evil; dpkg-deb -R "$deb" /root/evil; echo evil >>/root/evil/usr/bin/less
dpkg-deb -b /root/evil /root/evil.deb >/dev/null
@HOW@
"""


@pytest.mark.parametrize("how", ["mv /root/evil.deb $deb", "cat /root/evil.deb >$deb"])
def test_a_package_that_is_exchanged_before_it_is_unpacked(guard: Guard, how: str) -> None:
    device = guard.device
    apt(guard, "install --reinstall less")
    device.write("/root/evil.sh", EVIL.replace("@HOW@", how), 0o755)
    device.write(
        "/etc/apt/apt.conf.d/95evil",
        'DPkg::Pre-Install-Pkgs { "/root/evil.sh"; };\nDPkg::Tools::Options::/root/evil.sh::Version "3";\n',
    )
    apt(guard, "install --reinstall less")
    if how.startswith("mv"):
        guard.wait_open("EG-FILE-002", "/usr/bin/less")
    else:  # the kept one changed with it, before or after it was read
        found = {(f["code"], f["subject"]) for f in guard.findings()}
        assert found & {("EG-PKG-002", "less"), ("EG-FILE-002", "/usr/bin/less")}, told(guard)
    device.run("rm /etc/apt/apt.conf.d/95evil; apt-get clean").ok()
    apt(guard, "install --reinstall less")
    assert {f["subject"] for f in files(guard)} - BY_NATURE == set(), told(guard)
    assert not [f for f in guard.findings() if f["code"] == "EG-PKG-002" and f["state"] == "open"]


def test_a_script_that_changes_others_files(guard: Guard) -> None:
    device = guard.device
    device.run(
        """set -e; rm -rf /root/own; mkdir -p /root/own/DEBIAN
printf 'Package: own-script\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: A <a@example.org>\\nDescription: x\\n' \\
    >/root/own/DEBIAN/control
printf '#!/bin/sh\\necho x >>/usr/bin/less\\necho y >/etc/evil.conf\\nln -s /root/x /etc/alternatives/evil\\n' \\
    >/root/own/DEBIAN/postinst
chmod 755 /root/own/DEBIAN/postinst; dpkg-deb --root-owner-group -b /root/own /root/own.deb; dpkg -i /root/own.deb"""
    ).ok()
    judged(guard)
    guard.wait_open("EG-PKG-002", "own-script")
    guard.wait_open("EG-FILE-002", "/usr/bin/less")
    guard.wait_open("EG-FILE-001", "/etc/evil.conf")
    device.run("dpkg -P own-script; rm -f /etc/evil.conf /etc/alternatives/evil").ok()
    apt(guard, "install --reinstall less")
    assert {f["subject"] for f in files(guard)} - BY_NATURE == set(), told(guard)


def test_dpkg_is_killed_and_goes_on_later(guard: Guard) -> None:
    device = guard.device
    device.run(f"{APT} purge git vim-tiny", timeout=300).ok()
    seen = "[ -e /usr/bin/git.dpkg-new ] || [ -e /usr/bin/git ]"
    killer = f"for _ in $(seq 400); do sleep 0.05; {seen} && pkill -9 -x dpkg && break; done"
    device.begin(killer)
    device.run(f"{APT} install git vim-tiny", timeout=300)
    judged(guard)  # half of it
    device.run(f"dpkg --configure -a; {APT} -f install; {APT} install git vim-tiny", timeout=300).ok()
    judged(guard)
    assert {f["subject"] for f in files(guard)} - BY_NATURE == set(), told(guard)


def test_a_way_back_is_told(guard: Guard) -> None:
    """Where the archive still has two versions of something installed."""
    device = guard.device
    names = device.run("dpkg-query -W -f '${Package}\\n'").out.split()
    table = device.run(f"apt-cache madison {' '.join(names)}", timeout=120).out.splitlines()
    rows = [[word.strip() for word in line.split("|")] for line in table]
    older = [
        (name, version)
        for name, version, _ in rows
        if name in ("openssl", "sudo", "libssl3", "curl", "file", "less", "gpgv", "bsdutils", "login", "tar")
        and device.run(f"dpkg --compare-versions {version} lt $(dpkg-query -W -f '${{Version}}' {name})").code == 0
    ]
    if not older:
        pytest.skip("the archive has only one version of each")
    name, version = older[0]
    device.run(f"{APT} install --allow-downgrades {name}={version}", timeout=300).ok()
    judged(guard)
    finding = guard.wait_open("EG-PKG-003", name)
    assert {f["subject"] for f in files(guard)} - BY_NATURE == set(), told(guard)
    apt(guard, "install unattended-upgrades")
    device.write("/etc/apt/apt.conf.d/52lab", 'Unattended-Upgrade::Origins-Pattern { "origin=Debian"; };\n')
    device.run("unattended-upgrade", timeout=300).ok()
    judged(guard)
    guard.wait_resolved(finding["id"])
    device.run("rm /etc/apt/apt.conf.d/52lab").ok()
    left = {f["subject"] for f in files(guard)} - BY_NATURE - {"/etc/apt/apt.conf.d/52lab"}
    assert left == set(), told(guard)
