"""Verbs `diff` and `history` of the helper: baselines that are kept, looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeguard.baseline import diff as differ
from edgeguard.baseline import store
from edgeguard.baseline.diff import DiffLine
from edgeguard.baseline.document import Baseline
from edgeguard.codec import cose
from edgeguard.codec import manifest as codec
from edgeguard.codec.digests import Algorithm
from edgeguard.codec.manifest import Block, Entry, order
from edgeguard.daemon.frames import Out
from edgeguard.daemon.signing import trust_of
from edgeguard.daemon.sweeping import now_ms, opened_manifest
from edgeguard.errors import BaselineRefused, EdgeGuardError
from edgeguard.settings import Settings

LINES_MAX = 2000  # of a diff; a person reads fewer
WORDS = {"+": "added", "-": "removed", "~": "changed"}


class NoSuchRevision(EdgeGuardError):
    """That revision is not kept (any more)."""


def kept(settings: Settings) -> tuple[list[Baseline], store.Store, str, bytes]:
    """Readable baselines, newest first; the store, the trust and our own key's id."""
    trust = trust_of(settings)
    shelf = store.Store(settings.paths.state, settings.paths.root)
    good = [item for _, item in shelf.history(trust.trusted) if not isinstance(item, BaselineRefused)]
    return good, shelf, trust.name, cose.kid_of(trust.key.public)


def history(settings: Settings, _request: dict[str, Any], out: Out) -> None:
    from edgeguard.baseline.image import KIND

    good, shelf, trust, own = kept(settings)
    floor = shelf.floor()
    known = trust_of(settings)
    standing = shelf.current(known.trusted, known.device, now_ms())
    in_force = standing.revision if standing is not None else floor
    rows = [
        {
            "revision": item.revision,
            "at": item.created,
            "trust": trust,
            "signer": "this device" if item.signer == own else item.signer.hex(),
            "mode": item.mode.value,
            "in_force": item.revision == in_force,
            "image": next(iter(item.references.get(KIND, {})), None),
            "waits": item.revision > floor,
            "files": item.files.entries if item.files else 0,
            "note": item.note,
        }
        for item in good
    ]
    out.say({"revisions": rows, "floor": floor})


def diff(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Request {"against": "" or a revision}: from that one (or the one before) to the one in force."""
    good, shelf, _, _ = kept(settings)
    if not good:
        raise NoSuchRevision("no baseline is kept here")
    new = good[0]
    wanted = request.get("against") or ""
    if wanted and not wanted.isdigit():
        raise NoSuchRevision(f"not a revision: {wanted}")
    older = [item for item in good[1:] if not wanted or item.revision == int(wanted)]
    if not older:
        raise NoSuchRevision(f"revision {wanted or new.revision - 1} is not kept")
    old = older[0]
    del shelf
    lines = [*_other_digests(settings, old, new), *differ.diff(old, new, file_lines(settings, old, new))]
    counts = {word: sum(line.sign == sign for line in lines) for sign, word in WORDS.items()}
    changes = [
        {
            "what": WORDS[line.sign],
            "kind": line.section,
            "subject": line.subject,
            "before": {},
            "after": {"text": line.text} if line.text else {},
        }
        for line in lines[:LINES_MAX]
    ]
    out.say({"changes": changes, **counts, "from": old.revision, "to": new.revision})


def file_lines(settings: Settings, old: Baseline, new: Baseline) -> Iterator[DiffLine]:
    """What the two file manifests differ in, merged in walk order."""
    if old.files == new.files or old.files is None or new.files is None:
        return
    state = settings.paths.state
    with opened_manifest(state, list(old.files[:2])) as one, opened_manifest(state, list(new.files[:2])) as two:
        assert one is not None
        assert two is not None
        yield from _merge(one, two)


def _other_digests(settings: Settings, old: Baseline, new: Baseline) -> Iterator[DiffLine]:
    """Where it is not told of which files the content is another."""
    if old.files is None or new.files is None or old.files == new.files:
        return
    state = settings.paths.state
    with opened_manifest(state, list(old.files[:2])) as one, opened_manifest(state, list(new.files[:2])) as two:
        assert one is not None
        assert two is not None
        if one.algorithm is not two.algorithm:
            text = f"{one.algorithm.label} -> {two.algorithm.label}: contents are compared by their size only"
            yield DiffLine("~", "files", "digest", text)


def _merge(one: codec.Reader, two: codec.Reader) -> Iterator[DiffLine]:
    """Contents cannot be compared by digests of two kinds: then a file differs by its size and attributes alone."""
    comparable = one.algorithm is two.algorithm
    olds = one.blocks() if comparable else map(_undigested, one.blocks())
    news = two.blocks() if comparable else map(_undigested, two.blocks())
    named = two.algorithm
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and order(old.directory) < order(new.directory)):
            assert old is not None
            yield from _lines(old.directory, dict(zip(old.names, old.entries, strict=True)), {}, named)
            old = next(olds, None)
        elif old is None or order(new.directory) < order(old.directory):
            yield from _lines(new.directory, {}, dict(zip(new.names, new.entries, strict=True)), named)
            new = next(news, None)
        else:
            before = dict(zip(old.names, old.entries, strict=True))
            yield from _lines(old.directory, before, dict(zip(new.names, new.entries, strict=True)), named)
            old, new = next(olds, None), next(news, None)


def _undigested(block: Block) -> Block:
    return block._replace(entries=[entry._replace(digest=b"") for entry in block.entries])


def _lines(
    directory: bytes, old: dict[bytes, Entry], new: dict[bytes, Entry], algorithm: Algorithm
) -> Iterator[DiffLine]:
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        path = (directory + b"/" + name).decode("utf-8", "backslashreplace")
        if before is None:
            yield DiffLine("+", "file", path)
        elif after is None:
            yield DiffLine("-", "file", path)
        elif before != after:
            yield DiffLine("~", "file", path, ", ".join(_differences(before, after, algorithm)))


def _differences(before: Entry, after: Entry, algorithm: Algorithm) -> list[str]:
    one, two = before.columns(algorithm), after.columns(algorithm)
    return [name for name in one if one[name] != two[name]]
