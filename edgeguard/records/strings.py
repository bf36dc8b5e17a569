"""The texts of a segment that go out as numbers: what it says twice, and what the baseline's manifest holds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from edgeguard.records.registry import ACTOR_FIELDS, TYPES, Field, Kind
from edgeguard.records.wire import Record, Reference, inline

_PARENTS = len(ACTOR_FIELDS) - 1
_SAID = itemgetter(0, 7)  # of a record: its type and fields


class Strings(NamedTuple):
    """Every text that a segment may say as a reference, by what stands for it."""

    numbered: list[str]  # the place here; most frequent first, because small numbers are short
    entries: dict[str, int]  # the number of the baseline's entry
    alone: list[str]  # itself

    def table(self) -> list[str | bytes]:
        """What the segment carries."""
        return [text if text.isascii() else inline(text) for text in self.numbered]

    def places(self) -> dict[str, int | str | bytes]:
        """What stands for each text in a row."""
        places: dict[str, int | str | bytes] = {text: text if text.isascii() else inline(text) for text in self.alone}
        places |= {text: -1 - entry for text, entry in self.entries.items()}
        places |= zip(self.numbered, range(len(self.numbered)), strict=True)
        return places


def strings_of(records: Iterable[Record], reference: Reference | None) -> Strings:
    """The texts of these records; `reference` knows those of the baseline."""
    often: list[tuple[int, str]] = []
    entries: dict[str, int] = {}
    alone: list[str] = []
    counted = Counter(_texts(records))
    del counted[None]
    for text, times in counted.items():
        assert text is not None
        if text[:1] == "/" and reference is not None and (entry := reference(text)) is not None:
            entries[text] = entry
        elif times > 1 and len(text) > 2:
            often.append((times, text))
        else:
            alone.append(text)
    often.sort(key=itemgetter(0), reverse=True)
    return Strings([text for _, text in often], entries, alone)


def _texts(records: Iterable[Record]) -> list[str | None]:
    """Every text that may be a reference, in the order of the rows, and None where a field has none."""
    texts: list[str | None] = []
    plans = _PLANS
    for number, said in map(_SAID, records):
        size, one, lists, actor = plans.get(number, _UNKNOWN)
        fields = said if len(said) >= size else said + (None,) * (size - len(said))
        texts += one(fields)
        for place in lists:
            texts += fields[place] or ()
        if actor and fields[actor]:
            _add_actor(texts, fields[actor])
    return texts


def _add_actor(texts: list[str | None], fields: tuple[Any, ...]) -> None:
    size, one, lists, _ = _ACTOR
    if len(fields) < size:
        fields += (None,) * (size - len(fields))
    texts += one(fields)
    for place in lists:
        texts += fields[place] or ()
    if len(fields) > _PARENTS and fields[_PARENTS]:
        texts += [exe for _, exe in fields[_PARENTS]]


_Plan = tuple[int, Callable[[tuple[Any, ...]], Iterable[str | None]], tuple[int, ...], int]
"""Where texts stand in the fields of a type: in so many fields, what takes them out, the places of lists, and that of
an actor, 0 if there is none: no type begins with one."""


def _plan(fields: Sequence[Field]) -> _Plan:
    places = {kind: tuple(at for at, field in enumerate(fields) if field.kind is kind) for kind in Kind}
    refs, lists, actors = places[Kind.REF], places[Kind.REFS], places[Kind.ACTOR]
    size = max((*refs, *lists, *actors), default=-1) + 1
    if len(refs) > 1:
        one: Callable[[tuple[Any, ...]], Iterable[str | None]] = itemgetter(*refs)
    else:
        one = itemgetter(slice(refs[0], refs[0] + 1) if refs else slice(0, 0))
    return size, one, lists, actors[0] if actors else 0


_PLANS = {kind.number: _plan(kind.fields) for kind in TYPES.values()}
_UNKNOWN = _plan(())
_ACTOR = _plan(ACTOR_FIELDS[:-1])
