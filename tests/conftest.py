"""What every test may rely on: the tree's own code, marks that skip with a reason, bounded property tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))
os.umask(0o022)  # users of Debian 13 have 002, and what a group may write is nothing that we trust

# Shared, slow machines: the number of examples bounds the time, a deadline would only make tests fail by chance.
settings.register_profile(
    "edgeguard", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("edgeguard")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`root` and `device` tests say why they do not run, instead of failing half-way."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("device"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def top() -> Path:
    """The top of the source tree."""
    return TOP


@pytest.fixture(autouse=True)
def _descriptors_come_back() -> Iterator[None]:
    from tests import lent

    yield
    lent.give_back()
