"""More than fifty packages of the release before are upgraded, downgraded, installed again and purged by apt,
unattended-upgrades and dpkg: nothing unexplained is told; and what is slipped into each of more than twenty such
transactions (`slips.py`) is told, file by file, and nothing besides it.

Each row of the table upgrades a package that was upgraded the same way before, without the slip: its harmless twin.
The tests of this file are one device's life, in this order.
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

    def __init__(self, guard: Guard, suite: str) -> None:
        self.guard = guard
        self.suite = suite
        self.before = older.BEFORE[suite]

    def came(self, names: tuple[str, ...], since: dict[str, str]) -> set[str]:
        """Those of the packages that have another version than they had."""
        now = older.versions(self.guard.device)
        return {name for name in names if now.get(name) != since[name]}


@pytest.fixture(scope="module")
def life(image: Path, packages: dict[str, Path], suite: str) -> Iterator[Life]:
    with Device(image, net="veth") as device, Archive(device, device.host_address):
        guard = Guard(device)
        slips.prepare(device)
        older.age(device, suite)
        device.run(f"{APT} install unattended-upgrades", timeout=300).ok()
        device.run("mkdir /root/debs; cd /root/debs; apt-get -q download " + " ".join(older.PLAIN), timeout=300).ok()
        guard.install(packages["edgeguard"])
        guard.learned()
        assert not opened(guard)
        yield Life(guard, suite)


def quiet(life: Life, *names: str, besides: str = "") -> None:
    """Nothing is open but codes of that pattern, and each of the packages has a record that explains its files."""
    records = life.guard.ask("log -n 200").out
    missing = [name for name in names if not re.search(rf"upgrade +{re.escape(name)} .*: ", records)]
    assert not missing, f"{missing}\n{records}"
    left = {found for found in opened(life.guard) if not re.fullmatch(besides, found[0])}
    assert left == set(), f"{left}\n{told(life.guard)}"


def test_packages_are_upgraded_by_apt_and_dpkg_and_unattended(life: Life) -> None:
    device = life.guard.device
    since = older.versions(device)
    apt(life.guard, "install " + " ".join(older.NAMED))
    quiet(life, *older.NAMED)
    device.run("DEBIAN_FRONTEND=noninteractive dpkg -i /root/debs/*.deb", timeout=300).ok()
    judged(life.guard)
    quiet(life, *older.PLAIN)
    device.run(f"apt-mark hold {' '.join(older.REST)}; unattended-upgrade", timeout=600).ok()
    device.run(f"apt-mark unhold {' '.join(older.REST)}").ok()
    judged(life.guard)
    quiet(life, *older.UNATTENDED)
    apt(life.guard, "full-upgrade")
    quiet(life, *older.REST)
    upgraded = life.came(older.ALL, since)
    print(f"{len(upgraded)} of {len(older.ALL)} packages upgraded, 0 findings")
    assert len(upgraded) >= PACKAGES_MIN, set(older.ALL) - upgraded


def test_packages_go_back_and_each_way_back_is_told(life: Life) -> None:
    since = older.versions(life.guard.device)
    apt(life.guard, "install --allow-downgrades " + older.at(older.ALL, life.before))
    back = life.came(older.ALL, since)
    print(f"{len(back)} packages downgraded")
    assert len(back) >= PACKAGES_MIN
    ways_back = {subject for code, subject in opened(life.guard) if code == "EG-PKG-003"}
    assert back <= ways_back, back - ways_back
    quiet(life, besides="EG-PKG-003")


def test_what_is_slipped_into_a_transaction_is_told(life: Life) -> None:
    caught, troubles = 0, list[str]()
    for slip in SLIPS:
        trouble = slipped(life, slip)
        caught += not trouble
        troubles += [trouble] if trouble else []
        print(f"{'missed' if trouble else 'caught'}  {slip.package:22} {slip.when:11} {slip.name}")
    print(f"{caught} of {len(SLIPS)}")
    assert len({slip.package for slip in SLIPS}) == len(SLIPS) >= SLIPS_MIN
    assert caught == len(SLIPS), "\n".join([*troubles, told(life.guard)])


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
    device.run("; ".join(slip.undo for slip in SLIPS if slip.undo) + f"; rm -rf {ACTS}; apt-get clean")
    apt(life.guard, "install --reinstall " + " ".join(slip.package for slip in SLIPS))
    apt(life.guard, "full-upgrade")
    quiet(life)


def test_packages_are_installed_again(life: Life) -> None:
    apt(life.guard, "install --reinstall " + " ".join(older.ALL))
    quiet(life)


def test_packages_are_purged(life: Life) -> None:
    names = [name for name in older.ALL if name not in older.KEPT]
    apt(life.guard, "purge " + " ".join(names))
    installed = older.versions(life.guard.device)
    gone = [name for name in names if name not in installed]
    print(f"{len(gone)} packages purged")
    assert len(gone) >= PACKAGES_MIN
    quiet(life)
