"""A device whose only baseline was destroyed says so with a finding, and not only on the screen."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from edgeguard.baseline import policy, store
from edgeguard.daemon import bare
from edgeguard.daemon.baselines import Refusal
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.loop import Loop
from edgeguard.model import Severity
from edgeguard.settings import Paths, Settings

HOUSE = Path(__file__).resolve().parents[3]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    for name in ("state", "run", "exchange"):
        (tmp_path / name).mkdir()
    paths = Paths(
        root=str(tmp_path), state=f"{tmp_path}/state", runtime=f"{tmp_path}/run", exchange=f"{tmp_path}/exchange"
    )
    return Guard(Loop(), Settings(paths=paths), "", lambda _line: None)


def test_the_rules_are_those_of_the_package() -> None:
    with open(HOUSE / "edgeguard" / "codes.toml", "rb") as file:
        table = {code: (entry["title"], entry["severity"]) for code, entry in tomllib.load(file).items()}
    vendor = policy.parse(store.read_policy_dirs(os.fspath(HOUSE / "packaging" / "policy.d"), ""), table)
    known = {rule.id: rule for rule in vendor.rules}
    for rule in bare.rules():
        same = known[rule.id]
        assert (rule.code, rule.severity, rule.title) == (same.code, same.severity, same.title)
        assert (rule.where, rule.expect) == (same.where, same.expect)


def test_no_valid_baseline_is_a_finding(guard: Guard) -> None:
    guard.trouble.refused([Refusal("00000001.egb", "EG-BASE-001", "the signature does not match")])
    guard.judging.no_baseline(may_learn=False)
    found = {finding.subject: (finding.code, finding.severity) for finding in guard.river.ledger.open()}
    found.pop("spool", None)  # what this guard lacks besides
    assert found == {
        "baseline 00000001.egb": ("EG-BASE-001", Severity.CRITICAL),
        "baseline": ("EG-BASE-006", Severity.HIGH),
    }
