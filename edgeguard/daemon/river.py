"""Where an observation becomes a finding: observe -> evaluate -> ledger -> everyone who must know.

This is the middle of the daemon and it is short on purpose. It opens nothing; time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgeguard.baseline.document import Baseline, References
from edgeguard.codec.digests import Algorithm
from edgeguard.evaluate.engine import Engine
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Change, Observation, Outcome

Listener = Callable[[Change], None]


class River:
    """Takes observations, keeps the ledger, tells of changes. Without a baseline it only lets water through."""

    def __init__(self, ledger: Ledger, tell: Listener) -> None:
        self.ledger = ledger
        self._tell = tell
        self.engine: Engine | None = None
        self.references: References | None = None
        self.baseline: Baseline | None = None

    def judge_by(
        self, baseline: Baseline, references: References, now: int, algorithm: Algorithm = Algorithm.SHA256
    ) -> list[Change]:
        """Swap the baseline as a whole. Standing findings are judged again by what was last observed. `algorithm`: of
        the digests that it has of files."""
        rules = baseline.policy.rules
        if algorithm is not Algorithm.SHA256:  # which is what rules say that were read
            from edgeguard.baseline.contents import in_terms_of

            rules = in_terms_of(rules, algorithm)
        self.engine = Engine(rules, baseline.policy.waivers, references)
        self.references = references
        self.baseline = baseline
        return self.ledger.govern(self.engine, now)

    def judge_bare(self, engine: Engine) -> None:
        """No baseline is valid: only EdgeGuard itself is judged. What stood in the ledger stays as it was."""
        if self.baseline is None:
            self.engine = engine

    def take(self, observation: Observation, now: int) -> list[Change]:
        if self.engine is None:
            return []
        changes = self.ledger.apply(self.engine.evaluate(observation, now), now)
        for change in changes:
            self._tell(change)
        return changes

    def deviates(self, observation: Observation, now: int) -> bool:
        """Would this be a finding?"""
        if self.engine is None:
            return False
        results = self.engine.evaluate(observation, now)
        return any(result.outcome in (Outcome.FAIL, Outcome.UNKNOWN, Outcome.ERROR) for result in results)

    def take_all(self, observations: Iterable[Observation], now: int) -> None:
        for observation in observations:
            self.take(observation, now)

    def tick(self, now: int) -> None:
        """Waivers end and acceptances run out without anybody observing anything."""
        for change in self.ledger.tick(now):
            self._tell(change)

    def standing(self, kind: str) -> Iterator[str]:
        """Subjects of a kind that have a live finding."""
        return iter({f.subject for f in (*self.ledger.open(), *self.ledger.suppressed()) if f.kind == kind})
