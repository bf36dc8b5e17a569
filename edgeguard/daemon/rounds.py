"""The rounds: when every watched file is looked at again, and what becomes of what a sweep found.

A sweep runs beside the live sensor, so what it tells may be older than what we saw ourselves. Which request follows
which is in `sweeps`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from edgeguard.daemon.deeps import Deeps
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.judging import RELOOK_S, Judging
from edgeguard.daemon.keeping import Keeping
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.river import River
from edgeguard.daemon.sensing import Sensing, now_ms
from edgeguard.daemon.sweeps import TARGETS_MAX, Request, Sweeps, adopt
from edgeguard.daemon.telling import Telling
from edgeguard.daemon.times import Times
from edgeguard.daemon.trouble import Trouble
from edgeguard.model import Observation, Origin
from edgeguard.sensors.look import LATER
from edgeguard.settings import Settings

LIVE_FILES_MAX = 4096


class Rounds:
    """Asks for sweeps in time and lets what they find flow into `take`."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        helpers: Helpers,
        judging: Judging,
        river: River,
        keeping: Keeping,
        sensing: Sensing,
        telling: Telling,
        trouble: Trouble,
        take: Callable[[Observation], None],
        changed: Callable[[], None],
        holding: Callable[[], bool] = lambda: False,  # does what was told wait in memory, and would end with us?
    ) -> None:
        self._holding = holding
        self._loop = loop
        self._settings = settings
        self._judging = judging
        self._river = river
        self._keeping = keeping
        self._sensing = sensing
        self._telling = telling
        self._trouble = trouble
        self._take = take
        self._changed = changed
        self.sweeps = Sweeps(
            helpers,
            self._found,
            self._swept,
            lambda error: trouble.helper_failed("sweep", error),
            judging.for_sweeps,
            Times(float(settings.budget.sweep_s)),
        )
        self._deeps = Deeps(
            loop,
            helpers,
            settings.budget.deep_s,
            judging.for_sweeps,
            self._found_deep,
            lambda error: trouble.helper_failed("deep", error),
            lambda: trouble.helper_well("deep"),
            lambda files, found: telling.state("sweep", f"deep: {files} files read, {found} differ"),
        )
        self.checked: int | None = None  # when a whole round ended
        self._again: list[str] = []  # findings about files that are to be looked at again
        self._looking = False
        self._live_files: dict[str, int] = {}  # seen live since the running sweep began: path -> ms
        self.on_round: Callable[[], None] = lambda: None  # everything was looked at, and every finding once more

    def begin(self, *, compare: bool = False) -> None:
        """The first round, when the sensors stand: what changed while we were away. `compare`: other files are
        expected than when we last ran."""
        away = os.path.exists(f"{self._settings.paths.state}/observed.db") and not self._judging.learned
        self.sweeps.ask(Request(Origin.DOWN if away else Origin.SWEEP, compare=compare or self._keeping.lost))
        self._later()
        self._deeps.begin()

    def _later(self) -> None:
        every = float(self._settings.budget.sweep_s)

        def sweep() -> None:
            self.sweeps.ask(Request(Origin.SWEEP))
            self._later()

        self._loop.later(every, sweep, slack=60.0)

    def look(self, targets: tuple[str, ...]) -> None:
        """Look at these paths; without any, at everything."""
        self.sweeps.ask(Request(Origin.SWEEP, targets=targets))

    def compare(self) -> None:
        """Something else is watched or expected now: what did not change is judged again, too."""
        self.sweeps.ask(Request(Origin.SWEEP, compare=True))

    def seen_live(self, seen: Observation) -> None:
        """Beyond the bound, the next sweep puts right what this one tells late."""
        if self.sweeps.running is not None and len(self._live_files) < LIVE_FILES_MAX:
            self._live_files[seen.subject] = seen.at

    def _found(self, observation: Observation) -> None:
        """What the sensor handed to a helper comes back here; it still knows who did it."""
        files: Any = self._sensing.sensor("files")
        if files is None:
            self._take(observation)
        elif self._live_files.get(observation.subject, 0) >= observation.at:
            # It changed after the sweep began: what the sweep saw may be from before, so look now.
            self._took(files.observe_path(observation.subject, now_ms()))
        elif (known := files.found(observation)) is not None:
            self._take(known)

    def _found_deep(self, observation: Observation) -> None:
        """What a slice read may be some time ago: look now, as thoroughly, also where the file is touched all the
        time: a look that follows a touch is a lesser one."""
        files: Any = self._sensing.sensor("files")
        if files is None:
            self._take(observation)
        else:
            known = files.found(observation, always=True)
            self._took(files.observe_path(known.subject, now_ms(), known.actor, Origin.SWEEP))

    def _took(self, seen: Observation) -> None:
        """A look of the sensor's own. What it leaves to a helper comes back by `_found`."""
        if seen.note != LATER:
            self._take(seen)

    def _swept(self, request: Request, answer: dict[str, Any]) -> None:
        self._live_files.clear()
        summary = answer.get("summary")
        if summary is None:
            self._loop.later(RELOOK_S, lambda: self.sweeps.ask(request.again()))
            return
        if summary["written"] and not self.adopt_swept():
            self.sweeps.times.forget()
        self._trouble.helper_well("sweep")
        if not request.targets:
            self._look_at_logs(request.origin)
            self._look_at_findings()
            self.checked = now_ms()
            self._telling.state("sweep", f"{summary['files']} files, {summary['emitted']} changed")
        self._changed()

    def _look_at_logs(self, origin: Origin) -> None:
        """The helper says of a log whose it is. What became of it the sensor knows, which follows it."""
        files: Any = self._sensing.sensor("files")
        for seen in files.look_at_logs(now_ms(), origin) if files is not None else ():
            self._take(seen)

    def adopt_swept(self) -> bool:
        """Keep the findings first: after a kill in between, the next sweep tells all of it again. So it does of what
        waits for packages to explain it, which is no finding yet. True: it is in place."""
        if self._holding():
            return False
        with contextlib.suppress(OSError):  # then it is told again, too
            if self._keeping.save():
                adopt(self._settings.paths.state)
                return True
        return False

    def _look_at_findings(self) -> None:
        """A sweep tells what differs from the last one. What came and went between two looks of ours is not there to
        be told: so every finding about a file is looked at again."""
        self._again = list(self._river.standing("file"))
        if not self._looking:
            self._look_on()

    def _look_on(self) -> None:
        """As many of them as one helper takes."""
        targets, self._again = self._again[:TARGETS_MAX], self._again[TARGETS_MAX:]
        self._looking = bool(targets)
        if targets:
            self.sweeps.ask(Request(Origin.SWEEP, targets=tuple(targets), on_done=lambda _answer: self._look_on()))
        else:
            self.on_round()
