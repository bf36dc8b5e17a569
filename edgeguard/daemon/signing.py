"""Verbs `load`, `rebase` and `install` of the helper: what needs the device's key or somebody's signature checked."""

from __future__ import annotations

import contextlib
import os
import stat
from hashlib import sha256
from typing import Any, NamedTuple, cast

from edgeguard.baseline import contents, document, keys, store
from edgeguard.baseline.document import Baseline
from edgeguard.baseline.policy import Policy, parse
from edgeguard.codec import cose
from edgeguard.codec import manifest as manifests
from edgeguard.codec.digests import Algorithm, held
from edgeguard.codec.values import columns_from_plain, from_plain
from edgeguard.daemon.frames import Out
from edgeguard.daemon.sweeping import file_digest, now_ms, opened_references
from edgeguard.errors import Corrupt, DecodeError, EdgeGuardError, Expired, NotYetValid
from edgeguard.model import Columns
from edgeguard.settings import Settings
from edgeguard.upgrades import overlay


class Trust(NamedTuple):
    """Who this device is and whose baselines count on it."""

    key: cose.Signer  # it may be in a TPM: only who signs finds out whether that answers
    device: bytes
    trusted: list[bytes]
    name: str  # "local" or "fleet"


class NotLocal(EdgeGuardError):
    """A fleet signs for this device; it may not sign for itself."""


class NotKept(EdgeGuardError):
    """What was expected earlier is not known any more."""


def trust_of(settings: Settings) -> Trust:
    key = keys.own(settings)
    trusted, name = keys.trusted_keys(settings.paths.trust, key.public)
    return Trust(key, cose.device_id(key.public), trusted, name)


def compiled_policy(settings: Settings) -> Policy:
    """The policy of the vendor's and the site's files. Raises PolicyError with every problem."""
    from edgeguard import codes
    from edgeguard.sensors import TABLE, sensor_class

    kinds = {kind: columns for name in TABLE for kind, columns in sensor_class(name).kinds.items()}
    table = codes.load()
    known = {code: (entry.title, entry.severity) for code, entry in table.items()}
    files = store.read_policy_dirs(settings.paths.vendor_policy, settings.paths.site_policy)
    policy = parse(files, known, kinds, now=now_ms())
    # A finding carries its next step, and the daemon does not hold the table of codes.
    return policy._replace(rules=tuple(rule._replace(fix=rule.fix or table[rule.code].fix) for rule in policy.rules))


def load(settings: Settings, _request: dict[str, Any], out: Out) -> None:
    """Answers {"baseline": payload, "trust", "signer", "digest", "refusals", "handed", "overlay", "image"} or {"none":
    true, "learn": bool, "refusals", "handed"}. `handed`: what image updates left and is refused."""
    from edgeguard.daemon import handovers

    trust = trust_of(settings)
    shelf = store.Store(settings.paths.state, settings.paths.root)
    handed = handovers.take_all(settings, trust, shelf, now_ms())
    loaded = shelf.load_verified(trust.trusted, trust.device, now_ms())
    refusals = [[item.name, item.error.code, str(item.error)] for item in loaded.refused]
    baseline, data = loaded.baseline, loaded.data
    if baseline is None:
        baseline, data = _standing(shelf, trust, loaded.refused)
    if baseline is not None:
        try:
            check_manifest(settings, baseline)
        except Corrupt as error:
            refusals.append([f"{baseline.revision:08d}.egb", error.code, str(error)])
            baseline = None
    if baseline is None:
        may_learn = shelf.floor() == 0 and trust.name == "local"
        out.say({"none": True, "learn": may_learn, "refusals": refusals, "handed": handed})
        return
    own = cose.kid_of(trust.key.public) == baseline.signer
    out.say(
        {
            "baseline": cose.parse1(data).payload,
            "trust": trust.name,
            "signer": "this device" if own else baseline.signer.hex(),
            "digest": sha256(data).digest(),
            "refusals": refusals,
            "handed": handed,
            "overlay": _overlay(settings, trust, baseline),
            "image": handovers.words(settings, trust, shelf, baseline),
        }
    )


def _overlay(settings: Settings, trust: Trust, baseline: Baseline) -> list[Any] | None:
    """What packages brought over this baseline's files. One that is damaged is as good as none: what it explained is
    found to differ again, and that is loud enough."""
    found = _overlaid(settings, trust, baseline)
    return None if found is None else overlay.told(found)


def _overlaid(settings: Settings, trust: Trust, baseline: Baseline) -> overlay.Overlay | None:
    if baseline.files is None:
        return None
    try:
        return overlay.load(settings.paths.state, trust.key.public, baseline.files.sha256)
    except DecodeError:
        return None


def _standing(shelf: store.Store, trust: Trust, refused: tuple[store.Refused, ...]) -> tuple[Baseline | None, bytes]:
    """The baseline that stands, although it has expired or the clock says that it has not begun.

    A device whose clock is wrong, or whose fleet forgot to renew, is better judged by the last baseline that it had
    than by none; the refusal is reported all the same.
    """
    name = f"{shelf.floor():08d}.egb"
    if not any(item.name == name and isinstance(item.error, (Expired, NotYetValid)) for item in refused):
        return None, b""
    with open(os.path.join(shelf.directory, name), "rb") as file:
        data = file.read(document.SIZE_MAX + 1)
    baseline = document.open_trusted(data, trust.trusted)
    return (baseline, data) if baseline.device in (None, trust.device) else (None, b"")


def algorithm_of(shelf: store.Store, baseline: Baseline) -> Algorithm:
    """Of the digests that this baseline has of files. Raises Corrupt."""
    if baseline.files is None:
        return Algorithm.SHA256
    path = shelf.manifest_path(baseline.files.sha256)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return manifests.Reader(file.fileno()).algorithm
    except (OSError, DecodeError) as error:
        raise Corrupt(f"its file manifest cannot be read: {error}") from error


def check_manifest(settings: Settings, baseline: Baseline) -> None:
    """The manifest that the baseline names is here and is the one. Raises Corrupt."""
    if baseline.files is None:
        return
    path = store.Store(settings.paths.state).manifest_path(baseline.files.sha256)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != baseline.files.size or file_digest(file) != baseline.files.sha256:
                raise Corrupt("its file manifest has other content than was signed")
            manifests.Reader(file.fileno())
    except OSError as error:
        raise Corrupt(f"its file manifest cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise Corrupt(f"its file manifest cannot be used here: {error}") from error


def rebase(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Sign the next revision.

    Request: {"policy": bool, "accept": [[kind, subject, columns|None], ...], "forget": [[kind, subject], ...], "note"}.
    """
    trust = trust_of(settings)
    if trust.name != "local":
        raise NotLocal("a fleet signs the baselines of this device; change the policy there")
    policy = compiled_policy(settings) if request.get("policy") else None
    shelf = store.Store(settings.paths.state, settings.paths.root)
    with shelf.alone():
        next_one = _next(shelf, trust, policy, request)
        shelf.install(document.sign(next_one, trust.key), next_one)
    _protect(settings, next_one, request.get("accept", []))
    if policy is not None:
        keep_copies(settings, trust, next_one)
    out.say(describe(next_one))


def _next(shelf: store.Store, trust: Trust, policy: Policy | None, request: dict[str, Any]) -> Baseline:
    """The revision after the one that stands."""
    standing = shelf.load_verified(trust.trusted, trust.device, now_ms()).baseline
    if standing is None:
        raise Corrupt("there is no valid baseline to go on from; run: edgeguard baseline learn")
    baseline = standing if policy is None else standing._replace(policy=policy)
    if policy is not None:  # a baseline keeps its digests; another choice counts when the device is learned anew
        contents.check(policy.rules, algorithm_of(shelf, baseline))
    for kind, subject, columns in request.get("accept", []):
        value = None if columns is None else columns_from_plain(columns)
        baseline = document.with_reference(baseline, kind, str(from_plain(subject)), value)
    for kind, subject in request.get("forget", []):
        baseline = _as_before(shelf, trust, baseline, kind, str(from_plain(subject)))
    now = now_ms()
    after = baseline.policy.settings.expires_after
    return baseline._replace(
        revision=shelf.floor() + 1,
        created=now,
        not_before=min(now, standing.not_before),
        expires=None if after is None else now + after,
        parent=shelf.parent(),
        note=request.get("note", ""),
    )


def _as_before(shelf: store.Store, trust: Trust, baseline: Baseline, kind: str, subject: str) -> Baseline:
    """The reference value of one subject as it was before it last changed. Raises NotKept."""
    nothing = object()
    now = baseline.references.get(kind, {}).get(subject, nothing)
    for _, older in shelf.history(trust.trusted):
        if not isinstance(older, Baseline) or older.revision > baseline.revision:
            continue
        if older.files != baseline.files:
            break  # learned anew since: what was before says nothing about now
        before = older.references.get(kind, {}).get(subject, nothing)
        if before is nothing and now is not nothing:
            return document.without_reference(baseline, kind, subject)
        if before != now:
            return document.with_reference(baseline, kind, subject, cast("Columns | None", before))
    raise NotKept("the revision before it is not kept any more, or the device was learned anew since")


def _protect(settings: Settings, baseline: Baseline, accepted: list[Any]) -> None:
    """Of protected files that were accepted as they are now, keep a copy: a later restore must give this content."""
    from edgeguard.sensors import revisit

    paths = [str(from_plain(subject)) for kind, subject, columns in accepted if kind == "file" and columns is not None]
    if paths:
        vault, most = f"{settings.paths.state}/vault", settings.budget.vault_bytes
        revisit.protect(
            baseline.policy.watches,
            settings.paths.root,
            paths,
            vault,
            vault_max=most,
            algorithm=algorithm_of(store.Store(settings.paths.state), baseline),
        )


def keep_copies(settings: Settings, trust: Trust, baseline: Baseline, *, only_compared: bool = False) -> None:
    """Of files that are as this baseline says and that its policy wants a copy of. It is in force with or without.
    `only_compared`: not of those that could be restored."""
    if baseline.files is None:
        return
    from edgeguard.sensors import copies, revisit

    found = _overlaid(settings, trust, baseline)
    superseded = found.superseded if found is not None else {}
    request = {
        "manifest": [baseline.files.sha256, baseline.files.size],
        "overlay": None if found is None else [found.sha256, found.size],
    }
    with contextlib.suppress(DecodeError, OSError), opened_references(settings.paths.state, request) as manifest:

        def in_manifest(path: str) -> Columns | None:
            entry = manifest.lookup(os.fsencode(path)) if manifest is not None else None
            return entry.columns(manifest.algorithm) if manifest is not None and entry is not None else None

        def is_superseded(path: str, accepted: Columns | None) -> bool:
            return path in superseded and superseded[path] == overlay.fingerprint(accepted)

        references = document.References(baseline, in_manifest, is_superseded)

        def digest(path: str) -> bytes:
            return held(references.expected("file", path) or {})[1]

        vault, most = f"{settings.paths.state}/vault", settings.budget.vault_bytes
        wanted = copies.comparable if only_compared else copies.kept
        algorithm = manifest.algorithm if manifest is not None else Algorithm.SHA256
        revisit.complete(
            baseline.policy.watches,
            settings.paths.root,
            digest,
            vault,
            wanted=wanted,
            vault_max=most,
            algorithm=algorithm,
        )


def install(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """Take in a baseline from elsewhere. Request: {"path": str, "manifest": str}."""
    from edgeguard.daemon import handovers

    trust = trust_of(settings)
    shelf = store.Store(settings.paths.state, settings.paths.root)
    path, manifest = (str(from_plain(request.get(name, ""))) for name in ("path", "manifest"))
    taken = handovers.take(settings, trust, shelf, path, manifest, now_ms())
    baseline = taken["baseline"]
    if not taken["waits"]:
        keep_copies(settings, trust, baseline)
    out.say(
        {
            **describe(baseline),
            **handovers.described(taken),
            "previous": taken["previous"] or None,
            "signer": baseline.signer.hex(),
        }
    )


def read_regular(path: str, limit: int) -> bytes:
    """A whole regular file of bounded size. Raises Corrupt."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Corrupt(f"{path}: {error.strerror}") from error
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Corrupt(f"{path}: not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Corrupt(f"{path}: larger than {limit} bytes")
    return data


def describe(baseline: Baseline) -> dict[str, Any]:
    return {
        "revision": baseline.revision,
        "rules": len(baseline.policy.rules),
        "waivers": len(baseline.policy.waivers),
        "files": baseline.files.entries if baseline.files else 0,
    }
