"""The baseline: what a device is judged by. One value, its bytes, and whether it may come into force. Pure.

A baseline is policy plus reference values (learned or built), for one device or a fleet, with a revision that never
goes down and a validity. The files' reference values are too many to hold: they are in a manifest of their own, which
the baseline names by digest; accepted changes to files lie in the baseline, over the manifest.
Where baselines are kept, and how high the revision was, is in `store`; comparing two is in `diff`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edgeguard.baseline.encoding import (
    TIME_MAX,
    Part,
    ReferenceTable,
    policy_from_part,
    policy_to_plain,
    references_from_part,
    references_to_plain,
)
from edgeguard.baseline.policy import Policy
from edgeguard.codec import cbor, cose
from edgeguard.codec.values import to_plain
from edgeguard.errors import (
    BadSignature,
    Corrupt,
    DecodeError,
    Expired,
    Incomplete,
    NotYetValid,
    OlderRevision,
    SignatureMismatch,
    Truncated,
    UnknownSigner,
    WrongDevice,
)
from edgeguard.model import Columns, Condition, Mode, Operator

VERSION = 1
SIZE_MAX = 16 * 1024 * 1024  # bytes of a signed baseline; 3,000 packages and 200 rules give 300 KiB
REVISION_MAX = 2**31  # one a second for 68 years
DEPTH = 8

_DEVICE_SIZE = cose.DEVICE_ID_SIZE
_DIGEST_SIZE = 32
_KEYS = frozenset(
    {
        "v",
        "revision",
        "device",
        "target",
        "created",
        "not_before",
        "expires",
        "files",
        "parent",
        "note",
        "policy",
        "references",
    }
)


class ManifestRef(NamedTuple):
    """The file manifest that belongs to a baseline."""

    sha256: bytes
    size: int  # bytes
    entries: int


NO_REFERENCES: ReferenceTable = {}
"""Nobody writes into a table of references: `with_reference` makes a new one."""


class Baseline(NamedTuple):
    revision: int
    created: int
    not_before: int
    policy: Policy
    device: bytes | None = None  # None: any device that trusts the signer
    target: str = ""  # for people: the fleet or group it was made for
    expires: int | None = None
    references: ReferenceTable = NO_REFERENCES
    files: ManifestRef | None = None
    parent: bytes | None = None  # SHA-256 of the signed bytes of the one before
    note: str = ""  # why it was made
    version: int = VERSION
    signer: bytes = b""  # kid of the key that vouched for it; not part of the bytes

    @property
    def mode(self) -> Mode:
        """enforce as soon as one rule enforces (if the device's own switch allows)."""
        enforced = any(rule.mode is Mode.ENFORCE for rule in self.policy.rules)
        return Mode.ENFORCE if enforced else Mode.AUDIT

    def to_cbor(self) -> bytes:
        """The bytes that are signed."""
        return cbor.encode(
            {
                "v": self.version,
                "revision": self.revision,
                "device": self.device,
                "target": to_plain(self.target),
                "created": self.created,
                "not_before": self.not_before,
                "expires": self.expires,
                "files": None if self.files is None else list(self.files),
                "parent": self.parent,
                "note": to_plain(self.note),
                "policy": policy_to_plain(self.policy),
                "references": references_to_plain(self.references),
            }
        )

    @classmethod
    def from_cbor(cls, data: bytes, signer: bytes = b"") -> Baseline:
        """The baseline in a payload whose signature somebody has verified. DecodeError names the wrong place."""
        table = Part(cbor.decode(data, depth=DEPTH, size=SIZE_MAX), "baseline").table(_KEYS)
        if table["v"].value != VERSION or type(table["v"].value) is not int:
            raise table["v"].wrong(f"version {VERSION}")
        return cls(
            revision=table["revision"].integer(1, REVISION_MAX),
            created=table["created"].integer(),
            not_before=table["not_before"].integer(),
            policy=policy_from_part(table["policy"]),
            device=table["device"].optional(lambda part: part.blob(_DEVICE_SIZE)),
            target=table["target"].text(),
            expires=table["expires"].optional(Part.integer),
            references=references_from_part(table["references"]),
            files=table["files"].optional(_manifest_ref),
            parent=table["parent"].optional(lambda part: part.blob(_DIGEST_SIZE)),
            note=table["note"].text(),
            signer=signer,
        )


def _manifest_ref(part: Part) -> ManifestRef:
    sha256, size, entries = part.row(3)
    return ManifestRef(sha256.blob(_DIGEST_SIZE), size.integer(), entries.integer())


def compile_baseline(
    policy: Policy,
    references: Mapping[str, Mapping[str, Columns | None]],
    files: ManifestRef | None,
    revision: int,
    now: int,
    *,
    device: bytes | None = None,
    target: str = "",
    not_before: int | None = None,
    parent: bytes | None = None,
    note: str = "",
) -> Baseline:
    """A baseline that holds from `now`.

    Of kinds that the policy skips in learning nothing is taken over: whatever there is of them is reported.
    """
    after = policy.settings.expires_after
    kept = {kind: dict(table) for kind, table in references.items()}
    kept.update({kind: {} for kind in policy.settings.learn_skip})
    return Baseline(
        revision=revision,
        created=now,
        not_before=now if not_before is None else not_before,
        policy=policy,
        device=device,
        target=target,
        expires=None if after is None else min(now + after, TIME_MAX),
        references=kept,
        files=files,
        parent=parent,
        note=note,
    )


def with_reference(baseline: Baseline, kind: str, subject: str, columns: Columns | None) -> Baseline:
    """The baseline with one reference value changed; None: the subject is accepted as absent.

    Only files need absence to be written down, because the manifest still names them; elsewhere the entry goes.
    """
    table = dict(baseline.references.get(kind, {}))
    if columns is None and kind != "file":
        table.pop(subject, None)
    else:
        table[subject] = columns
    return baseline._replace(references={**baseline.references, kind: table})


def without_reference(baseline: Baseline, kind: str, subject: str) -> Baseline:
    """The baseline without an entry of its own for this subject; of a file, the manifest's word counts again."""
    table = {name: columns for name, columns in baseline.references.get(kind, {}).items() if name != subject}
    return baseline._replace(references={**baseline.references, kind: table})


def reissue(baseline: Baseline, revision: int, now: int, parent: bytes | None, note: str) -> Baseline:
    """The same content as a new revision: rolling back is going forward to what was."""
    after = baseline.policy.settings.expires_after
    expires = None if after is None else min(now + after, TIME_MAX)
    return baseline._replace(
        revision=revision, created=now, not_before=now, expires=expires, parent=parent, note=note, signer=b""
    )


def for_judging(baseline: Baseline) -> Baseline:
    """The baseline without reference values that no rule asks for: what a resident daemon keeps in memory.

    The signed bytes are the truth; this one is for judging by and must not be signed.
    """
    asked = {rule.kind for rule in baseline.policy.rules if any(map(_asks_reference, (*rule.where, *rule.expect)))}
    asked |= {"file", "listener"}  # the overlay; ports that no remediation may close
    return baseline._replace(
        references={kind: table if kind in asked else {} for kind, table in baseline.references.items()},
        policy=baseline.policy._replace(warnings=()),
    )


def _asks_reference(condition: Condition) -> bool:
    return condition.column == "known" or condition.operator in {Operator.SAME, Operator.NOT_BELOW}


def sign(baseline: Baseline, key: bytes | cose.Signer) -> bytes:
    """The signed bytes, as they lie in the store and travel."""
    return cose.sign1(baseline.to_cbor(), key, cose.BASELINE_AAD)


def open_signed(data: bytes, trusted: Sequence[bytes], device: bytes, floor: int, now: int) -> Baseline:
    """The baseline in `data`, if it may come into force on this device now; else a named BaselineRefused.

    `trusted` are public keys, `floor` is the highest revision that ever was in force: at the floor is the standing
    one itself, below it is a rollback.
    """
    baseline = open_trusted(data, trusted)
    if baseline.device is not None and baseline.device != device:
        raise WrongDevice(f"revision {baseline.revision} is for device {baseline.device.hex()}")
    if baseline.revision < floor:
        raise OlderRevision(f"revision {baseline.revision} is older than {floor}, which was in force")
    if now < baseline.not_before:
        raise NotYetValid(f"revision {baseline.revision} begins {(baseline.not_before - now) // 1000} s from now")
    if baseline.expires is not None and now >= baseline.expires:
        raise Expired(f"revision {baseline.revision} ended {(now - baseline.expires) // 1000} s ago")
    return baseline


def open_trusted(data: bytes, trusted: Sequence[bytes]) -> Baseline:
    """Only signature and form: for history and rollback, where time and revision do not matter."""
    if len(data) > SIZE_MAX:
        raise Corrupt(f"larger than {SIZE_MAX} bytes")
    try:
        payload = cose.verify1(data, trusted, cose.BASELINE_AAD)
    except Incomplete as error:
        raise Truncated(str(error)) from error
    except UnknownSigner as error:
        raise BadSignature(str(error)) from error
    except (DecodeError, SignatureMismatch) as error:
        raise Corrupt(str(error)) from error
    try:
        return Baseline.from_cbor(payload, cose.parse1(data).kid)
    except DecodeError as error:  # truly signed, so not cut off on the way: made by another version
        raise Corrupt(f"signed, but not understood here: {error}") from error


def _no_manifest(_path: str) -> Columns | None:
    return None


def _counts(_path: str, _accepted: Columns | None) -> bool:
    return False


def _as_learned(_subject: str, known: Columns | None) -> Columns | None:
    return known


class References:
    """The reference values of a baseline as the engine asks for them.

    `manifest_columns` gives the manifest's columns of a path. Files that were accepted since lie in the baseline and
    win over it, unless a package has changed them since (`superseded`). `account` gives what holds of an account that
    came or went with a package since, from what the baseline says of it.
    """

    def __init__(
        self,
        baseline: Baseline,
        manifest_columns: Callable[[str], Columns | None] = _no_manifest,
        superseded: Callable[[str, Columns | None], bool] = _counts,
        account: Callable[[str, Columns | None], Columns | None] = _as_learned,
    ) -> None:
        self._tables = baseline.references
        self._files: Mapping[str, Columns | None] = baseline.references.get("file", {})
        self._manifest = manifest_columns
        self._superseded = superseded
        self._account = account
        self._learned = frozenset(baseline.references) | ({"file"} if baseline.files is not None else set())

    def expected(self, kind: str, subject: str) -> Columns | None:
        """The reference columns of a subject, None if the baseline does not know it (or knows it as absent)."""
        if kind == "file":
            if subject in self._files and not self._superseded(subject, self._files[subject]):
                return self._files[subject]
            return self._manifest(subject)
        table = self._tables.get(kind)
        known = None if table is None else table.get(subject)
        return self._account(subject, known) if kind == "account" else known

    def learned(self, kind: str) -> bool:
        """Does the baseline say anything about this kind? If not, "unknown" means nothing."""
        return kind in self._learned
