"""What edgeguard-act may do: decided here, from the signed baseline and the open finding, and from nothing else.

The daemon asks with a verb and the id of a finding. It may be led astray, so every value is looked up again: the
baseline is verified by its signature, the rule must order this very verb in mode enforce, and the subject comes from
the finding in the ledger. What the verbs themselves look at (digests, the process behind the pid) is in
`edgeguard.remediations`.

Honest limit: where trust is local, the key that signs the baseline lies with the daemon's user.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
from collections.abc import Callable, Mapping, Sequence

from edgeguard.baseline.document import Baseline, ManifestRef
from edgeguard.baseline.image import image_of, lies_in
from edgeguard.baseline.keys import device_public, trusted_keys
from edgeguard.baseline.store import Store
from edgeguard.codec import cbor, cose
from edgeguard.codec.manifest import Reader
from edgeguard.errors import DecodeError, EdgeGuardError, RemediationRefused
from edgeguard.model import Columns, Finding, Mode, Rule, State, Watch
from edgeguard.remediations import Order, World
from edgeguard.remediations.plan import KINDS
from edgeguard.remediations.undo import write_whole
from edgeguard.sensors.watching import Plan
from edgeguard.settings import Settings
from edgeguard.upgrades import overlay

LEDGER_MAX = 32 * 1024 * 1024  # bytes; the archive's own bound
MANIFEST_MAX = 64 * 1024 * 1024  # bytes; 100,000 files make 9 MB, and it is held in memory
USER = "edgeguard"

Lookup = Callable[[bytes], Columns | None]


class Authority:
    """The verified baseline and the ledger, read once for one request."""

    def __init__(self, settings: Settings, now: int) -> None:
        self._settings = settings
        self._now = now

    def order(self, verb: str, finding_id: str) -> tuple[Order, World]:
        """The order for a finding, with a world that knows the verified manifest. Raises RemediationRefused."""
        if self._settings.mode != Mode.ENFORCE.value:
            raise RemediationRefused("this device is in mode audit")
        baseline = verified_baseline(self._settings, self._now)
        finding = read_finding(self._settings.paths.state, finding_id)
        rule = next((rule for rule in baseline.policy.rules if rule.id == finding.rule), None)
        check(verb, finding, rule)
        if finding.kind == "file" and packages_changed(self._settings, baseline, finding.subject):
            raise RemediationRefused("a package changed this file since the baseline was signed; install it again")
        watch = watch_of(finding, baseline.policy.watches)
        references = baseline.references
        order = Order(
            verb,
            finding.id,
            finding.code,
            finding.kind,
            finding.subject,
            finding.details if finding.details is not None else finding.observed,
            references.get(finding.kind, {}).get(finding.subject),
            listening(references.get("listener", {})),
            setid_only=watch is not None and watch.only == "setid",
        )
        return order, world(self._settings, manifest_lookup(self._settings, baseline))


class _Reading(Store):
    """The store without its writing half: root writes nothing where the daemon's user could put a symlink."""

    def _follow(self, baseline: Baseline) -> None:
        del baseline


def verified_baseline(settings: Settings, now: int) -> Baseline:
    """The baseline in force, its signature and everything else checked here and now. Raises RemediationRefused."""
    state = settings.paths.state
    try:
        public = device_public(state)
        trusted, _ = trusted_keys(settings.paths.trust, public)
        device = cose.device_id(public)
        baseline = _Reading(state, settings.paths.root).load_verified(trusted, device, now).baseline
    except (EdgeGuardError, OSError) as error:
        raise RemediationRefused(f"the baseline cannot be verified: {error}") from error
    if baseline is None:
        raise RemediationRefused("there is no valid signed baseline")
    _own_floor(settings, device, baseline)
    return baseline


def _own_floor(settings: Settings, device: bytes, baseline: Baseline) -> None:
    """The highest revision that we have acted by, where the daemon's user cannot lower it. An image has a floor of its
    own, so that a device that fell back to the one before is still put right; that it runs we have seen ourselves."""
    name = f"floor-{device.hex()}"
    image = image_of(baseline)
    running = lies_in(settings.paths.root) if image is not None else None
    if image is not None and running is not None and running.sha256 == image.sha256:
        _keep_floor(settings, f"{name}-{image.sha256.hex()}", baseline.revision)
        if baseline.revision < _floor(settings, name):
            return
    _keep_floor(settings, name, baseline.revision)


def _keep_floor(settings: Settings, name: str, revision: int) -> None:
    floor = _floor(settings, name)
    if revision < floor:
        raise RemediationRefused(f"revision {revision} is older than {floor}, which was in force")
    if revision > floor:
        directory = os.open(act_directory(settings), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_whole(directory, name, b"%d\n" % revision)
        finally:
            os.close(directory)


def _floor(settings: Settings, name: str) -> int:
    path = os.path.join(act_directory(settings), name)
    try:
        with open(path, "rb") as file:
            return int(file.read(16))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise RemediationRefused(f"{path} is damaged; a person must look") from error


def manifest_lookup(settings: Settings, baseline: Baseline) -> Lookup:
    """What the baseline knows of a path: accepted changes first, then the manifest."""
    accepted = baseline.references.get("file", {})
    reader = private_manifest(settings, baseline.files) if baseline.files is not None else None

    def lookup(path: bytes) -> Columns | None:
        name = os.fsdecode(path)
        if name in accepted:
            return accepted[name]
        entry = reader.lookup(path) if reader is not None else None
        return entry.columns(reader.algorithm) if reader is not None and entry is not None else None

    return lookup


def packages_changed(settings: Settings, baseline: Baseline, path: str) -> bool:
    """Does the baseline no longer say what this file is? Then nothing is put back and nothing taken away: the copies
    are of the old version. What the daemon wrote is enough to refuse, and only to refuse."""
    if baseline.files is None:
        return False
    try:
        place = overlay.place(settings.paths.state)
        if not os.path.lexists(place):
            return False
        signed = cose.parse1(read_owned(place, overlay.SIZE_MAX))
        found = overlay.unpack(cbor.decode(signed.payload, depth=8, size=overlay.SIZE_MAX))
        if found.base != baseline.files.sha256:
            return False
        fd = os.open(overlay.manifest_path(settings.paths.state, found.sha256), os.O_RDONLY | os.O_CLOEXEC)
        with open(fd, "rb"):
            return Reader(fd).lookup(os.fsencode(path)) is not None
    except (OSError, DecodeError) as error:
        raise RemediationRefused(f"what packages brought cannot be read: {error}") from error


def private_manifest(settings: Settings, named: ManifestRef) -> Reader:
    """The manifest in memory of our own, checked there: the file could be changed after the check."""
    data = read_owned(Store(settings.paths.state).manifest_path(named.sha256), MANIFEST_MAX)
    if len(data) != named.size or hashlib.sha256(data).digest() != named.sha256:
        raise RemediationRefused("the file manifest is not the one that the baseline names")
    fd = os.memfd_create("manifest", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as copy:
        copy.write(data)
    try:
        return Reader(fd)
    except DecodeError as error:
        raise RemediationRefused(f"the file manifest cannot be read: {error}") from error


def watch_of(finding: Finding, watches: Sequence[Watch]) -> Watch | None:
    """The watch that decides for a file, None for other kinds. Raises RemediationRefused where there is none."""
    if finding.kind != "file":
        return None
    watch = Plan(watches).decide(finding.subject)
    if watch is None:
        raise RemediationRefused("the signed policy does not watch this path")
    return watch


def check(verb: str, finding: Finding, rule: Rule | None) -> None:
    """Does the signed policy order this verb for this finding? Raises RemediationRefused."""
    if finding.state is not State.OPEN:
        raise RemediationRefused(f"the finding is {finding.state.value}")
    if rule is None or rule.kind != finding.kind or rule.code != finding.code:
        raise RemediationRefused("the signed policy has no such rule")
    if rule.remediation != verb:
        raise RemediationRefused("the signed policy does not order this for its rule")
    if rule.mode is not Mode.ENFORCE:
        raise RemediationRefused("the rule is in mode audit")
    if finding.kind not in KINDS[verb]:
        raise RemediationRefused(f"{verb} does not apply to a {finding.kind}")


def listening(references: Mapping[str, object]) -> frozenset[tuple[str, int]]:
    """(protocol, port) of every listener that the baseline expects."""
    found = set()
    for subject in references:
        protocol, _, address = subject.partition("/")
        port = address.rpartition(":")[2]
        if port.isascii() and port.isdigit():
            found.add((protocol, int(port)))
    return frozenset(found)


def _unknown(_path: bytes) -> Columns | None:
    return None


def world(settings: Settings, lookup: Lookup = _unknown) -> World:
    """Where things are by these settings. The act directory lies beside the state: only root enters it."""
    act = act_directory(settings)
    own = frozenset((0, os.geteuid()))
    return World(
        root=settings.paths.root,
        vault=os.path.join(settings.paths.state, "vault"),
        quarantine=os.path.join(act, "quarantine"),
        undo=os.path.join(act, "undo"),
        trusted_uids=own,
        lookup=lookup,
    )


def act_directory(settings: Settings) -> str:
    """/var/lib/edgeguard-act for /var/lib/edgeguard."""
    return settings.paths.state.rstrip("/") + "-act"


def read_finding(state: str, finding_id: str) -> Finding:
    """One open finding from the ledger file, which must be the daemon's own."""
    from edgeguard.evaluate.ledger import Ledger

    data = read_owned(os.path.join(state, "ledger.cbor"), LEDGER_MAX)
    try:
        findings = Ledger.from_cbor(data).all()
    except DecodeError as error:
        raise RemediationRefused(f"the ledger cannot be read: {error}") from error
    found = [finding for finding in findings if finding.id == finding_id]
    if not found:
        raise RemediationRefused("the ledger has no such finding")
    return found[0]


def read_owned(path: str, limit: int) -> bytes:
    """A regular file that nobody but root, the daemon's user or ourselves can write."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RemediationRefused(f"{os.path.basename(path)} cannot be read: {error.strerror}") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in allowed_uids() or status.st_mode & 0o022:
            raise RemediationRefused(f"{os.path.basename(path)} could have been written by somebody else")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise RemediationRefused(f"{os.path.basename(path)} is larger than {limit} bytes")
    return data


def allowed_uids() -> frozenset[int]:
    """Root, ourselves (in a test) and the daemon's user."""
    found = {0, os.geteuid()}
    try:
        found.add(pwd.getpwnam(USER).pw_uid)
    except KeyError:
        return frozenset(found)  # not installed: a source tree
    return frozenset(found)
