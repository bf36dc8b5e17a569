"""What is new, changed and gone, for sensors that list everything they see at each look.

Only a 64-bit fingerprint per subject is kept, not the observations: a device has a few thousand subjects, and the
resident daemon has no room for them twice. Fingerprints hold within one run of the program and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeguard.model import Observation, Origin, Status

WHOLE_KIND = "*"  # subject of an UNREADABLE observation that speaks for everything of its kind


class Snapshot:
    """Remembers the last look. `volatile`: columns whose change alone is no news (pid, start time)."""

    def __init__(self, volatile: frozenset[str] = frozenset()) -> None:
        self._volatile = volatile
        self._seen: dict[str, dict[str, int]] = {}  # kind -> subject -> fingerprint

    def update(self, observations: Iterable[Observation], now: int) -> Iterator[Observation]:
        """Of a complete look: first what is new or changed, then what is gone (ABSENT, made here).

        Nothing is gone as long as the look is not finished (an exception in it passes through), and nothing of a
        kind whose look could not be done: an UNREADABLE observation with the subject "*" says so.
        """
        before, after = self._seen, dict[str, dict[str, int]]()
        blind: set[str] = set()
        for observation in observations:
            kind, subject = observation.kind, observation.subject
            if observation.status is Status.UNREADABLE and subject == WHOLE_KIND:
                blind.add(kind)
            print_ = self._fingerprint(observation)
            if observation.status is not Status.ABSENT:
                after.setdefault(kind, {})[subject] = print_
            known = before.get(kind, {})
            if known.get(subject) != print_ and (observation.status is not Status.ABSENT or subject in known):
                yield observation
        for kind, subjects in before.items():
            present = after.setdefault(kind, {})
            for subject, print_ in subjects.items():
                if subject in present:
                    continue
                if kind in blind:
                    present[subject] = print_
                else:
                    yield Observation(kind, subject, {}, now, Status.ABSENT, Origin.SWEEP)
        self._seen = after

    def note(self, observation: Observation) -> bool:
        """One live observation between two looks. True if it is news (then the next look will not tell it again)."""
        subjects = self._seen.setdefault(observation.kind, {})
        if observation.status is Status.ABSENT:
            return subjects.pop(observation.subject, None) is not None
        print_ = self._fingerprint(observation)
        news = subjects.get(observation.subject) != print_
        subjects[observation.subject] = print_
        return news

    def forget(self, kind: str | None = None) -> None:
        """Let the next look tell everything again (of one kind); what is gone by then must be found elsewhere."""
        if kind is None:
            self._seen.clear()
        else:
            self._seen.pop(kind, None)

    def subjects(self, kind: str) -> Iterable[str]:
        """What of this kind was there at the last look."""
        return self._seen.get(kind, {}).keys()

    def _fingerprint(self, observation: Observation) -> int:
        volatile = self._volatile
        lasting = sorted((name, value) for name, value in observation.columns.items() if name not in volatile)
        return hash((observation.status, *lasting))
