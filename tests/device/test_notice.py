"""Each act is noticed within two seconds, by the right name and with its actor, and resolves when it is undone.

The acts are in acts.py.
"""

from __future__ import annotations

import re
import time

import pytest

from tests.device.acts import ACTS, Act
from tests.device.guard import NOTICE_S, Guard

pytestmark = pytest.mark.device

SHOWN_S = NOTICE_S + 0.5  # from before the acting program starts until the asking one has ended


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.name)
def test_noticed_and_resolved(guard: Guard, act: Act) -> None:
    began = time.time()
    acting = guard.device.begin(act.do)
    try:
        finding = guard.wait_match(act.code, act.subject)
        shown = time.time()
        out, err = acting.communicate(timeout=30)
        assert acting.returncode == 0, out + err
    finally:
        guard.device.run(act.undo)
    print(f"{act.name}: shown after {shown - began:.2f} s")
    assert shown - began <= SHOWN_S
    assert finding["origin"] in ("live", "sweep")  # as it happened, or by a look at once or by polling; never "down"
    assert finding["fix"]
    actor = finding["actor"] or {"exe": ""}
    assert re.fullmatch(act.actor, actor["exe"]), finding["actor"]
    guard.wait_resolved(finding["id"])
