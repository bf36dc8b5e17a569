"""More than fifty packages of the release before are upgraded, downgraded, installed again and purged by apt,
unattended-upgrades and dpkg: nothing unexplained is told; and what is slipped into each of more than twenty such
transactions (`slips.py`) is told, file by file, and nothing besides it. Without `--long` some of each.

Each row of the table upgrades a package that was upgraded the same way before, without the slip: its harmless twin.
The tests of this file are one device's life. Each of them first brings the packages to the release that it begins with,
which in this order they have already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device import older, slips
from tests.device.archive import Archive
from tests.device.guard import Guard
from tests.device.lab import Device
from tests.device.slips import ACTS, BESIDE, SLIPS, Slip
from tests.device.upgrading import APT, apt, judged, opened, told

pytestmark = pytest.mark.device

PACKAGES_MIN, SLIPS_MIN = 50, 20
ACTED_S = 10.0
WAYS = {
    "apt": f"{APT} install {{package}}",
    "dpkg": "DEBIAN_FRONTEND=noninteractive dpkg -i /root/debs/{package}_*.deb",
    "unattended": "unattended-upgrade",
}
# Once the file is another than now; not at all when the transaction is over before.
WAIT = """was=$(stat -c %i {file})
while [ "$(stat -c %i {file} 2>/dev/null || echo "$was")" = "$was" ]; do [ -e {acts}/over ] && exit; sleep 0.02; done
{act}; touch {acts}/beside.done"""


class Life:
    """The device, and what becomes of its packages."""

    def __init__(self, guard: Guard, suite: str, *, long: bool) -> None:
        self.guard = guard
        self.before = older.BEFORE[suite]
        self.long = long
        self.all = self.some(older.ALL)
        self.slips = [slip for slip in SLIPS if long or slip.name in slips.FEW]
        self._old = older.versions(guard.device)

    def some(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return older.chosen(names, long=self.long)

    def old(self) -> None:
        """All packages are of the release before."""
        if self.came(self.all, self._old):
            apt(self.guard, "install --allow-downgrades " + older.at(self.all, self.before))

    def new(self) -> None:
        """All packages are of this release."""
        if self.came(self.all, self._old) != set(self.all):
            apt(self.guard, "full-upgrade")

    def came(self, names: tuple[str, ...], since: dict[str, str]) -> set[str]:
        """Those of the packages that have another version than they had."""
        now = older.versions(self.guard.device)
        return {name for name in names if now.get(name) != since[name]}


@pytest.fixture(scope="module")
def life(image: Path, packages: dict[str, Path], suite: str, long: bool) -> Iterator[Life]:
    with Device(image, net="veth") as device, Archive(device, device.host_address):
        guard = Guard(device)
        slips.prepare(device)
        older.age(device, suite, older.chosen(older.ALL, long=long), beside="unattended-upgrades")
        device.write("/etc/apt/apt.conf.d/52steps", 'Unattended-Upgrade::MinimalSteps "false";\n')
        plain = " ".join(older.chosen(older.PLAIN, long=long))
        device.run(f"mkdir /root/debs; cd /root/debs; apt-get -q download {plain}", timeout=300).ok()
        guard.install(packages["edgeguard"])
        guard.learned()
        assert not opened(guard)
        yield Life(guard, suite, long=long)


def quiet(life: Life, *names: str, besides: str = "") -> None:
    """Nothing is open but codes of that pattern, and each of the packages has a record that explains its files."""
    records = life.guard.ask("log -n 200").out
    missing = [name for name in names if not re.search(rf"upgrade +{re.escape(name)} .*: ", records)]
    assert not missing, f"{missing}\n{records}"
    left = {found for found in opened(life.guard) if not re.fullmatch(besides, found[0])}
    assert left == set(), f"{left}\n{told(life.guard)}"


def test_packages_are_upgraded_by_apt_and_dpkg_and_unattended(life: Life) -> None:
    device = life.guard.device
    life.old()
    since = older.versions(device)
    named, rest = life.some(older.NAMED), life.some(older.REST)
    apt(life.guard, "install " + " ".join(named))
    quiet(life, *named)
    device.run("DEBIAN_FRONTEND=noninteractive dpkg -i /root/debs/*.deb", timeout=300).ok()
    judged(life.guard)
    quiet(life, *life.some(older.PLAIN))
    device.run(f"apt-mark hold {' '.join(rest)}; unattended-upgrade", timeout=600).ok()
    device.run(f"apt-mark unhold {' '.join(rest)}").ok()
    judged(life.guard)
    quiet(life, *life.some(older.UNATTENDED))
    apt(life.guard, "full-upgrade")
    quiet(life, *rest)
    upgraded = life.came(life.all, since)
    print(f"{len(upgraded)} of {len(life.all)} packages upgraded, 0 findings")
    assert upgraded == set(life.all)
    assert not life.long or len(upgraded) >= PACKAGES_MIN


def test_packages_go_back_and_each_way_back_is_told(life: Life) -> None:
    life.new()
    since = older.versions(life.guard.device)
    life.old()
    back = life.came(life.all, since)
    print(f"{len(back)} packages downgraded")
    assert back == set(life.all)
    ways_back = {subject for code, subject in opened(life.guard) if code == "EG-PKG-003"}
    assert back <= ways_back, back - ways_back
    quiet(life, besides="EG-PKG-003")


def test_what_is_slipped_into_a_transaction_is_told(life: Life) -> None:
    caught, troubles = 0, list[str]()
    life.old()
    for slip in life.slips:
        trouble = slipped(life, slip)
        caught += not trouble
        troubles += [trouble] if trouble else []
        print(f"{'missed' if trouble else 'caught'}  {slip.package:22} {slip.when:11} {slip.name}")
    print(f"{caught} of {len(life.slips)}")
    assert len({slip.package for slip in SLIPS}) == len(SLIPS) >= SLIPS_MIN
    assert caught == len(life.slips), "\n".join([*troubles, told(life.guard)])


def slipped(life: Life, slip: Slip) -> str:
    """One transaction with its slip. What is wrong about what is told, "" if nothing."""
    guard, device = life.guard, life.guard.device
    before = opened(guard)
    device.run(f"rm -rf {ACTS}; mkdir -p {ACTS}; {slip.before or ':'}").ok()
    beside = None
    if slip.when == BESIDE:
        beside = device.begin(WAIT.format(file=slip.file, act=slip.act, acts=ACTS))
    else:
        device.write(f"{ACTS}/{slip.when}", slip.act)
    device.run(WAYS[slip.how].format(package=slip.package), timeout=600)
    if beside is not None:
        device.run(f"touch {ACTS}/over").ok()
        beside.communicate(timeout=ACTED_S)
    acted = device.run(f"[ -e {ACTS}/{slip.when}.done ]")
    judged(guard)
    new = opened(guard).keys() - before.keys()
    new = {found for found in new if found[0] != "EG-PKG-003"}
    missing = [one for one in slip.found if not any(fits(one, found) for found in new)]
    more = [found for found in new if not any(fits(one, found) for one in slip.found)]
    return f"{slip.name}: " + trouble(device, acted.code, missing, more) if acted.code or missing or more else ""


def trouble(device: Device, code: int, missing: list[Any], more: list[Any]) -> str:
    said = device.run(f"cat {ACTS}/said").out if code else ""
    return f"{'it did not act: ' + said if code else ''} not told: {missing}; told besides: {more}"


def fits(expected: tuple[str, str], found: tuple[str, str]) -> bool:
    return bool(re.fullmatch(expected[0], found[0]) and re.fullmatch(expected[1], found[1]))


def test_afterwards_all_is_put_right_and_nothing_is_left(life: Life) -> None:
    device = life.guard.device
    device.run("; ".join(slip.undo for slip in life.slips if slip.undo) + f"; rm -rf {ACTS}; apt-get clean")
    apt(life.guard, "install --reinstall " + " ".join(slip.package for slip in life.slips))
    apt(life.guard, "full-upgrade")
    quiet(life)


def test_packages_are_installed_again(life: Life) -> None:
    if not life.long:
        pytest.skip("some are in test_upgrades.py; all with LONG=1")
    apt(life.guard, "install --reinstall " + " ".join(life.all))
    quiet(life)


def test_packages_are_purged(life: Life) -> None:
    names = [name for name in life.all if name not in older.KEPT]
    apt(life.guard, "purge " + " ".join(names))
    installed = older.versions(life.guard.device)
    gone = [name for name in names if name not in installed]
    print(f"{len(gone)} packages purged")
    assert gone == names
    quiet(life)
