"""When the slices of the deep sweep are read, and what becomes of what they find. They wait for nobody, and no other
sweep waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeguard.daemon.frames import observation_from_plain
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.loop import Loop
from edgeguard.errors import DecodeError
from edgeguard.model import Observation

SLICES = 24  # a period; each starts a program, which costs some 0.2 s of CPU time
SLICE_MAX_S = 600.0  # then a slice ends, however little it could do on a busy machine
FIRST_S = 600.0  # after a start the machine has other things to do; one that starts every hour is read all the same
PAUSE_MAX_S = 7 * 86_400.0
TIMEOUT_S = SLICE_MAX_S + 3600.0  # one file may take long, for who only gets what others leave


class Deeps:
    """One slice after the other, `period_s / SLICES` apart. `complete(files, found)` hears of whole rounds."""

    def __init__(
        self,
        loop: Loop,
        helpers: Helpers,
        period_s: float,
        judged_by: Callable[[], dict[str, Any]],
        take: Callable[[Observation], None],
        failed: Callable[[str], None],
        well: Callable[[], None],
        complete: Callable[[int, int], object],
    ) -> None:
        self._loop = loop
        self._helpers = helpers
        self._pause = min(PAUSE_MAX_S, max(1.0, period_s / SLICES))
        self._judged_by = judged_by
        self._take = take
        self._failed = failed
        self._well = well
        self._complete = complete
        self._round = [0, 0]  # files, found; of this run of the program
        self._position: bytes | None = None  # where the last slice ended, if the disk did not take it

    def begin(self) -> None:
        self._later(min(FIRST_S, self._pause))

    def _later(self, seconds: float) -> None:
        self._loop.later(seconds, self._slice, slack=min(60.0, seconds / 4))

    def _slice(self) -> None:
        answer: dict[str, Any] = {}
        self._helpers.start(
            "deep",
            {**self._judged_by(), "slices": SLICES, "seconds": int(SLICE_MAX_S), "position": self._position},
            lambda message: self._message(answer, message),
            lambda error: self._done(answer, error),
            timeout_s=TIMEOUT_S,
            low=True,
        )

    def _message(self, answer: dict[str, Any], message: dict[str, Any]) -> None:
        if "observations" not in message:
            answer.update(message)
            return
        for plain in message["observations"]:
            try:
                self._take(observation_from_plain(plain))
            except DecodeError as error:
                self._failed(str(error))

    def _done(self, answer: dict[str, Any], error: str) -> None:
        self._later(self._pause)
        facts = answer.get("deep")
        if error or facts is None:
            self._failed(error or "the slice gave no answer")
            return
        self._position = facts.get("position")
        if problem := facts.get("problem"):
            self._failed(f"where it stopped is not kept: {problem}")
        else:
            self._well()
        for place, name in enumerate(("files", "emitted")):
            self._round[place] += facts[name]
        if facts["complete"]:
            self._complete(*self._round)
            self._round = [0, 0]
