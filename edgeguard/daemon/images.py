"""Image updates, seen from the daemon: another image runs than before, and one record says what became of its files.

Which baseline that makes the one in force is decided by whoever loads it (`handovers`). Here it is only told: when the
first round under the new baseline is over, so that the record can say whether all is as signed.
"""

from __future__ import annotations

from typing import Any

from edgeguard.daemon.baselines import InForce
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.river import River
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.trouble import Trouble
from edgeguard.linux import durable
from edgeguard.model import Severity

SWITCH_S = 900.0  # reading two manifests, and keeping copies of what the policy wants copies of


class Images:
    """`arrived` hears of each baseline in force, `round_over` when all files have been looked at since."""

    def __init__(self, state: str, helpers: Helpers, river: River, telling: Telling, trouble: Trouble) -> None:
        self._state = state
        self._helpers = helpers
        self._river = river
        self._telling = telling
        self._trouble = trouble
        self.switched = False  # another image runs than before, and that has not been told yet

    def arrived(self, new: InForce) -> None:
        runs = new.image
        self._trouble.image(runs.problem if runs is not None else "")
        self.switched = runs is not None and runs.switched

    def round_over(self) -> None:
        if not self.switched:
            return
        answer: dict[str, Any] = {}
        self._helpers.start(
            "image", {}, answer.update, lambda error: self._compared(answer, error), timeout_s=SWITCH_S, low=True
        )

    def _compared(self, answer: dict[str, Any], error: str) -> None:
        """Told first and noted afterwards: a power cut in between makes two records of it, never none."""
        if error:
            self._trouble.helper_failed("image", error)
        else:
            self._trouble.helper_well("image")
        if "files" not in answer:
            return  # tried again after the next round
        self.switched = False
        odd = sum(1 for finding in self._river.ledger.open() if finding.kind == "file")
        severity = Severity.MEDIUM if answer["back"] else Severity.LOW if odd else Severity.INFORMATIONAL
        columns = {"before": answer["before"], "after": answer["now"], "files": answer["files"], "count": odd}
        self._telling.state("image", summary(answer, odd), severity=severity, columns=columns)
        try:
            durable.write(f"{self._state}/baseline/ran", b"%d\n" % answer["revision"], 0o600)
        except OSError as problem:
            self._trouble.spool("image", f"that image {answer['now']} runs cannot be noted: {problem.strerror}")


def summary(answer: dict[str, Any], odd: int) -> str:
    """image pump 2026.11.1 -> pump 2026.11.2: 812 files, all as signed"""
    files = f"{answer['files']} file{'' if answer['files'] == 1 else 's'}"
    signed = f"{odd} not as signed, each a finding" if odd else "all as signed"
    back = "; the device fell back" if answer["back"] else ""
    return f"{answer['before']} -> {answer['now']}: {files}, {signed}{back}"
