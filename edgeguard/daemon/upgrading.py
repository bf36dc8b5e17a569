"""Verbs `prepare` and `explain` of the helper: what packages do to files, before and after they did it.

prepare  read the .debs that the hook kept and write down what they say of each path
explain  look at these paths, and at others that may be made of them; sign the reference values that come of it
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from edgeguard.baseline import store
from edgeguard.baseline.document import Baseline
from edgeguard.codec import cbor, cose
from edgeguard.codec.digests import Algorithm, named
from edgeguard.codec.layers import ABSENT, Layers, Lookup
from edgeguard.codec.manifest import Block, Entry, Reader, order, split
from edgeguard.codec.values import columns_from_plain, from_plain
from edgeguard.daemon.frames import Out, watches_from_plain
from edgeguard.daemon.signing import keep_copies, trust_of
from edgeguard.daemon.sweeping import now_ms, opened_manifest
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.linux import priority
from edgeguard.model import Columns
from edgeguard.settings import Settings
from edgeguard.upgrades import accounts, expected, judge, overlay, transactions, versions
from edgeguard.upgrades.archive import NOBODY
from edgeguard.upgrades.derived import Derived, Held
from edgeguard.upgrades.expected import Owner
from edgeguard.upgrades.judge import Judge, Pending, Tally
from edgeguard.upgrades.overlay import Account, Notable, Overlay

LOOK_BYTES = 2 << 20  # of paths that the daemon is to look at; beyond, it compares everything
OTHERS_TOLD = 20  # paths of one package that go into the summary,
OTHERS_BYTES = 16 << 10  # and bytes of them


class Past(NamedTuple):
    """What is kept of earlier packages beside an overlay, signed like it and for it alone: STATE/upgrades/*.past"""

    brought: dict[bytes, str]  # path -> package that nobody vouches for and that this path's reference value is of
    gone: dict[str, int]  # package -> when the transaction began that took it away, ms
    lost: frozenset[str]  # such packages whose paths are not known any more: they stay findings


def spool_of(settings: Settings) -> str:
    return f"{settings.paths.exchange}/packages"


def prepare(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Request {"transactions": [name, ...], "digest": as the baseline has it}; answers {"prepared": name} or
    {"refused": [name, why]} for each."""
    priority.background()
    state, spool = settings.paths.state, spool_of(settings)
    algorithm = named(request.get("digest", Algorithm.SHA256.value))
    for name in request["transactions"]:
        try:
            try:
                found = expected.load(state, name)
            except (FileNotFoundError, DecodeError):
                found = expected.prepare(state, spool, name, settings.paths.root, algorithm)
        except (DecodeError, OSError) as error:
            out.say({"refused": [name, str(error)]})
            continue
        out.say({"prepared": name, "troubles": list(found.troubles)})


def explain(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Request {"transactions", "held": [[path, maker], ...], "accounts": [[subject, maker, columns or
    None], ...], "watches", "manifest", "overlay"}; answers {"overlay":
    [...], "packages": [...]}, with one map for each package."""
    priority.background()
    state, root = settings.paths.state, settings.paths.root
    trust = trust_of(settings)
    standing = store.Store(state, root).load_verified(trust.trusted, trust.device, now_ms()).baseline
    base_digest = request["manifest"][0] if request["manifest"] is not None else b""
    public = trust.key.public
    before = _standing_overlay(state, public, base_digest)
    algorithm = named(request.get("digest", Algorithm.SHA256.value))
    pending = _pending(settings, request["transactions"], algorithm)
    tallies: list[Tally] = []
    with opened_manifest(state, request["manifest"]) as base:
        top = overlay.opened(state, before)
        references: Lookup | None = Layers(base, top) if top is not None else base
        watches = watches_from_plain(request["watches"])
        past = _past(state, public, before)
        known = _versions(standing, before)
        limit = settings.budget.hash_file_max
        eye = Judge(root, watches, references, limit, past.brought, known or None, past.gone)
        old = [top.blocks()] if top is not None else []
        os.makedirs(expected.folder(state), mode=0o700, exist_ok=True)
        digest, size = overlay.write_manifest(state, *old, eye.run(pending, tallies), algorithm=algorithm)
        owners = [owner for item in pending for owner in item.expected.owners]
        names = [eye.name(owner) for owner in owners]
        began = [item.expected.began for item in pending for _ in item.expected.owners]
        gone = _gone(names, owners, tallies, began, past.gone)
        owners = [_with_before(owner, known.get(name, "")) for owner, name in zip(owners, names, strict=True)]
        came, notable = _packages(names, owners, tallies, before, known, past.lost)
        unowned = _unowned(eye, notable)
        if unowned or eye.moved:
            digest, size = _over(state, digest, {**eye.moved, **unowned})
        held = [Held(path, maker) for path, maker in request["held"]]
        happened = [when for when, tally in zip(began, tallies, strict=True) if tally.stood]
        new = Reader(os.open(overlay.manifest_path(state, digest), os.O_RDONLY | os.O_CLOEXEC))
        derived = Derived(eye, Layers(base, new), min(happened, default=0) * 1_000_000, expected.folder(state))
        # Where no package came or went, nothing is made of one.
        made = dict(derived.explain_all(held)) if happened else {}
        if made:
            digest, size = _over(state, digest, made)
        superseded = _superseded(standing, before, new, top)
        rows = [
            accounts.Held(str(from_plain(subject)), maker, None if columns is None else columns_from_plain(columns))
            for subject, maker, columns in request.get("accounts", ())
        ]
        people = accounts.Accounts(eye, pending).explained(rows) if rows and happened else {}
    found = Overlay(base_digest, digest, size, came, notable, superseded, _accounts(standing, before, people))
    _keep(state, found, past._replace(brought=eye.brought, gone=gone), trust.key)
    overlay.install(state, found, trust.key, before)
    look = _as_many_as_fit(eye.others, judge.LOOK_MAX, LOOK_BYTES)
    _tidy(state, found)
    out.say(
        {
            "overlay": overlay.told(found),
            "packages": [_told(owner, tally, people) for owner, tally in _once(owners, tallies)],
            "look": look,
            "compare": len(eye.others) > len(look),
            "derived": len(made),
            "unproven": derived.unproven,
        }
    )
    if standing is not None:
        # Settings that packages brought: what changes in them later is told. A copy for restoring is the baseline's.
        keep_copies(settings, trust, standing, only_compared=True)


def _as_many_as_fit(paths: Sequence[bytes], most: int, size_max: int) -> list[bytes]:
    """Into a part of what the daemon takes as one answer."""
    sizes = accumulate(len(path) for path in paths[:most])
    return [path for path, size in zip(paths, sizes, strict=False) if size <= size_max]


def _standing_overlay(state: str, public: bytes, base: bytes) -> Overlay | None:
    try:
        return overlay.load(state, public, base)
    except DecodeError:
        return None  # said when the baseline was loaded; what it explained is told anew


def _past(state: str, public: bytes, before: Overlay | None) -> Past:
    """What belongs to this overlay. Whoever takes it away ends no finding by that."""
    if before is None:
        return Past({}, {}, frozenset())
    try:
        data = transactions.content(expected.folder(state), f"{before.sha256.hex()}.past", overlay.SIZE_MAX)
        plain_ = cbor.decode(cose.verify1(data, [public], cose.UPGRADES_AAD), depth=8, size=overlay.SIZE_MAX)
        kind, base, digest, paths, gone, lost = plain_
        if (kind, base, digest) != ("past", before.base, before.sha256):
            raise DecodeError("upgrades: kept for another overlay")
        brought = {bytes(path): str(name) for name, several in paths for path in several}
        return Past(brought, {str(name): int(when) for name, when in gone}, frozenset(map(str, lost)))
    except (OSError, EdgeGuardError, TypeError, ValueError):
        lost_ = frozenset(item.name for item in before.notable if item.word == NOBODY)
        return Past({}, dict.fromkeys(before.versions, 0), lost_)  # and no package that came since goes unheard


def _keep(state: str, found: Overlay, past: Past, key: cose.Signer) -> None:
    """Before the overlay that it belongs to, so that this one never comes without it."""
    paths: dict[str, list[bytes]] = {}
    for path, name in past.brought.items():
        paths.setdefault(name, []).append(path)
    brought = [[name, paths[name]] for name in sorted(paths)]
    gone = [list(pair) for pair in sorted(past.gone.items())]
    plain_ = ["past", found.base, found.sha256, brought, gone, sorted(past.lost)]
    target = f"{expected.folder(state)}/{found.sha256.hex()}.past"
    expected.durably(target, cose.sign1(cbor.encode(plain_), key, cose.UPGRADES_AAD))


def _tidy(state: str, found: Overlay) -> None:
    for name in os.listdir(expected.folder(state)):
        if name.endswith(".past") and name != f"{found.sha256.hex()}.past":
            os.unlink(f"{expected.folder(state)}/{name}")


def _gone(
    names: Sequence[str], owners: Sequence[Owner], tallies: Sequence[Tally], began: Sequence[int], past: dict[str, int]
) -> dict[str, int]:
    """The packages that were taken away, so that the same story told once more explains nothing."""
    gone = dict(past)
    for name, owner, tally, when in zip(names, owners, tallies, began, strict=True):
        if tally.stood and owner.version:
            gone.pop(name, None)
        elif tally.stood:
            gone[name] = when
    return gone


def _unowned(eye: Judge, notable: Sequence[Notable]) -> dict[bytes, Entry]:
    """Paths that a package brought for which nobody vouches, and that is no longer one to know of: it went, or a signed
    one took its place and does not speak of them. What still lies there is a finding from now on."""
    there = {item.name for item in notable if item.word == NOBODY}
    unowned = [path for path, name in eye.brought.items() if name not in there]
    for path in unowned:
        del eye.brought[path]
    return dict.fromkeys(unowned, ABSENT)


def _over(state: str, digest: bytes, entries: dict[bytes, Entry]) -> tuple[bytes, int]:
    """A manifest with these entries instead."""
    fd = os.open(overlay.manifest_path(state, digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        under = Reader(fd)
        return overlay.write_manifest(state, under.blocks(), blocks_of(entries), algorithm=under.algorithm)
    finally:
        os.close(fd)


def _pending(settings: Settings, names: Sequence[str], algorithm: Algorithm) -> list[Pending]:
    """What was written down of each transaction. Where a baseline with other digests came since, it is read again: the
    .debs are there until all is judged."""
    found = []
    state, root = settings.paths.state, settings.paths.root
    for name in sorted(names):
        said, reader = expected.load(state, name), _prepared(state, name)
        if reader.algorithm is not algorithm:
            said = expected.prepare(state, spool_of(settings), name, root, algorithm)
            reader = _prepared(state, name)
        found.append(Pending(said, reader))
    return found


def _prepared(state: str, name: str) -> Reader:
    return Reader(os.open(transactions.manifest_of(state, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))


def blocks_of(entries: dict[bytes, Entry]) -> list[Block]:
    """Single paths as blocks in walk order."""
    folders: dict[bytes, dict[bytes, Entry]] = {}
    for path, entry in entries.items():
        directory, name = split(path)
        folders.setdefault(directory, {})[name] = entry
    return [
        Block(directory, sorted(found), [found[name] for name in sorted(found)])
        for directory, found in sorted(folders.items(), key=lambda item: order(item[0]))
    ]


def _superseded(standing: Baseline | None, before: Overlay | None, new: Reader, old: Reader | None) -> dict[str, bytes]:
    """Accepted files that a package has changed since: what was accepted of them is no longer what should be there."""
    found = dict(before.superseded) if before is not None else {}
    accepted = standing.references.get("file", {}) if standing is not None else {}
    for path, columns in accepted.items():
        entry = new.lookup(os.fsencode(path))
        if entry is not None and (old is None or old.lookup(os.fsencode(path)) != entry):
            found[path] = overlay.fingerprint(columns)
    return {path: value for path, value in found.items() if path in accepted}


def _versions(standing: Baseline | None, before: Overlay | None) -> dict[str, str]:
    """The version of each package as this device last knew it, not as dpkg says."""
    found: dict[str, str] = {}
    if standing is not None:
        for name, columns in standing.references.get("package", {}).items():
            if columns is not None and isinstance(version := columns.get("version"), str):
                found[name] = version
    return {**found, **(before.versions if before is not None else {})}


def _with_before(owner: Owner, last: str) -> Owner:
    """The later of what apt said and what is known here: nobody comes back to an old version by telling a story."""
    if last and (not owner.before or versions.compare(last, owner.before) > 0):
        return owner._replace(before=last)
    return owner


def _packages(
    names: Sequence[str],
    owners: Sequence[Owner],
    tallies: Sequence[Tally],
    before: Overlay | None,
    known: dict[str, str],
    lost: frozenset[str],
) -> tuple[dict[str, str], tuple[Notable, ...]]:
    """The versions that are known from now on, and the packages that somebody should know of."""
    came = dict(before.versions) if before is not None else {}
    notable = {item.name: item for item in before.notable} if before is not None else {}
    for name, owner, tally in zip(names, owners, tallies, strict=True):
        if not tally.stood:
            continue
        standing = notable.get(name)
        if name not in lost:
            notable.pop(name, None)
        if not owner.version:
            continue  # its version is still known: one that is older than that is no new package
        came[name] = owner.version
        back = owner.before if owner.before and versions.compare(owner.version, owner.before) < 0 else ""
        # The same once more, as it was learned or accepted, brings nothing that nobody vouches for.
        same = owner.version == known.get(name) and not (tally.changed or tally.setid)
        if same and standing is not None and owner.word == NOBODY:
            notable[name] = standing
        elif back or (owner.word == NOBODY and not same):
            notable[name] = Notable(name, owner.version, owner.word, owner.paths, back)
    return came, tuple(notable[name] for name in sorted(notable))


def _once(owners: Sequence[Owner], tallies: Sequence[Tally]) -> list[tuple[Owner, Tally]]:
    """What is told. unattended-upgrades lets apt call the hook twice: of two transactions that are the same the later
    one has all that there is to say."""
    later: set[tuple[str, str, str, bytes]] = set()
    told: list[tuple[Owner, Tally]] = []
    for owner, tally in reversed(list(zip(owners, tallies, strict=True))):
        package = (owner.name, owner.architecture, owner.version, owner.sha256)
        if tally.says or package not in later:
            told.append((owner, tally))
        later.add(package)
    return told[::-1]


def _accounts(
    standing: Baseline | None, before: Overlay | None, people: Mapping[str, tuple[str, Columns | None]]
) -> dict[str, Account]:
    """The accounts of earlier packages, and these."""
    found = dict(before.accounts) if before is not None else {}
    learned = standing.references.get("account", {}) if standing is not None else {}
    for subject, (_, columns) in people.items():
        if subject in found or len(found) < overlay.ACCOUNTS_MAX:
            found[subject] = Account(overlay.fingerprint(learned.get(subject)), columns)
    return found


def _told(owner: Owner, tally: Tally, people: Mapping[str, tuple[str, Columns | None]]) -> dict[str, Any]:
    its = [(subject, columns) for subject, (package, columns) in sorted(people.items()) if package == owner.name]
    others = _as_many_as_fit(tally.others, OTHERS_TOLD, OTHERS_BYTES)
    return {
        "name": owner.name,
        "architecture": owner.architecture,
        "before": owner.before,
        "after": owner.version,
        "word": owner.word,
        "sha256": owner.sha256,
        "signed": tally.signed,
        "other": tally.other,
        "kept": tally.kept,
        "removed": tally.removed,
        "missed": tally.missed,
        "others": [path.decode("utf-8", "backslashreplace") for path in others],
        "text": ", ".join(
            (
                judge.summed(owner, tally),
                *(subject if columns is not None else f"{subject} gone" for subject, columns in its),
            )
        ),
    }
