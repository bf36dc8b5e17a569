"""A device with packages of the release before, as one is that nobody has upgraded yet.

The older versions are the Debian archive's own, signed by it: of Debian 11 on Debian 12, of Debian 12 on Debian 13.
They are small, and between them they have what makes upgrades hard: conffiles that the new version has not, renames or
changed; maintainer scripts that make users, units, cron jobs and rights; triggers; alternatives; compiled Python
modules; hooks of the initramfs; files that ucf puts together.
"""

from __future__ import annotations

import pytest

from tests.device.machine import Machine
from tests.device.upgrading import APT

BEFORE = {"bookworm": "bullseye", "trixie": "bookworm"}


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Nothing but the C library and small libraries, no service: `dpkg -i` has no questions, whatever the order.
PLAIN = words("""tree pv dos2unix hexedit dc ed zip unzip hdparm ethtool whois gdisk psmisc rlwrap dmidecode""")
# By unattended-upgrades, which keeps back whatever would take another package away (a library that was renamed).
UNATTENDED = words("nano bc logrotate mtr-tiny ca-certificates python3-idna")
# By their names, apt-get install; what is left goes by apt-get full-upgrade.
# None whose source also has a library of the root: apt would upgrade it along with whatever needs that library.
NAMED = words("""rename lsof strace anacron man-db gawk screen traceroute netcat-traditional vnstat rsyslog
    python3-six ucf iputils-ping""")
REST = words("""at ncdu htop sysstat dnsmasq-base smartmontools rsync socat tcpdump popularity-contest
    python3-requests python3-certifi python3-chardet python3-urllib3 python3-pkg-resources initramfs-tools-core busybox
    debsums pciutils usbutils i2c-tools lm-sensors colordiff adduser""")
ALL = (*PLAIN, *UNATTENDED, *NAMED, *REST)
# Enough for every commit: some of each way, and those of slips.FEW.
FEW = words("tree dos2unix zip nano bc ca-certificates python3-idna rsyslog lsof man-db busybox colordiff")
KEPT = ("adduser", "ca-certificates", "ucf")  # others need them: not purged

# Of the device's own mirror, whichever that is, the release before.
SOURCES = r"""sed -nE 's/^(deb (\[[^]]*\] )?[^ ]+) {suite} main.*/\1 {before} main/p' /etc/apt/sources.list |
    head -n 1 >/etc/apt/sources.list.d/before.list
grep -q {before} /etc/apt/sources.list.d/before.list"""
# A device takes nothing of the old release by itself.
PREFERENCES = """Package: *
Pin: release n={before}
Pin-Priority: 100
"""


def age(device: Machine, suite: str, names: tuple[str, ...] = ALL, beside: str = "") -> None:
    """Install these packages in the versions of the release before, and those `beside` them, first, as they are now.
    apt has to reach the archive; where that one does not have the old release any more, the test is skipped."""
    before = BEFORE[suite]
    if device.run(SOURCES.format(suite=suite, before=before)).code:
        pytest.skip(f"the device names no mirror for {suite}")
    device.write("/etc/apt/preferences.d/before", PREFERENCES.format(before=before))
    device.run("apt-get -q update", timeout=300)
    offered = device.run(f"{APT} --print-uris install --allow-downgrades {names[0]}/{before}", timeout=60)
    if offered.code:
        pytest.skip(f"the archive does not offer {before}: {offered.err.strip()[-200:]}")
    if beside:  # later, apt might upgrade one of the others along
        device.run(f"{APT} install {beside}", timeout=300).ok()
    device.run(f"{APT} install --allow-downgrades {at(names, before)}", timeout=900).ok()


def at(names: tuple[str, ...], release: str) -> str:
    """Packages as apt-get is told to take them of one release."""
    return " ".join(f"{name}/{release}" for name in names)


def chosen(names: tuple[str, ...], *, long: bool) -> tuple[str, ...]:
    """All of them, or the few."""
    return names if long else tuple(name for name in names if name in FEW)


def versions(device: Machine) -> dict[str, str]:
    """What dpkg calls installed, also what is on hold."""
    lines = device.run("dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\\n'").ok().out.splitlines()
    return {words[1]: words[2] for line in lines if (words := line.split())[0] in ("ii", "hi")}
