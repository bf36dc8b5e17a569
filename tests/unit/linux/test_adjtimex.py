"""Is the clock synchronised? The kernel's word, and whose word counts where the sandbox forbids to ask it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeguard.linux import adjtimex

TIME_OK, TIME_ERROR, REFUSED = 0, 5, -1


@pytest.mark.parametrize(
    ("state", "timesyncd", "expected"),
    [
        (TIME_OK, False, True),
        (TIME_ERROR, True, False),  # the kernel knows better
        (REFUSED, False, False),
        (REFUSED, True, True),
    ],
)
def test_whose_word_counts(
    state: int, timesyncd: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "synchronized"
    if timesyncd:
        sign.touch()
    monkeypatch.setattr(adjtimex, "_libc", SimpleNamespace(adjtimex=lambda _timex: state))
    monkeypatch.setattr(adjtimex, "TIMESYNCD", str(sign))
    assert adjtimex.synchronised() is expected
