"""Baselines and policy files on disk.

    STATE/baseline/<revision>.egb   signed baselines; the newest that is valid is in force, the others are history
    STATE/baseline/<sha256>.egm     the file manifests that they name
    STATE/baseline/floor            the highest revision that ever was in force, in decimal
    STATE/baseline/slots            the images that this device may run (`slots`)

A revision below the floor never comes back, whatever lies here: rolling back means issuing the old content again
under a new revision. One exception: a device that falls back to the image that it ran before is judged by that image's
baseline again. A baseline for an image that does not run waits, whatever its revision.
Nothing is judged here: `document.open_signed` says what may come into force.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from edgeguard.baseline import image as images
from edgeguard.baseline import slots as slotting
from edgeguard.baseline.document import SIZE_MAX, Baseline, open_signed, open_trusted, reissue, sign
from edgeguard.baseline.image import Image
from edgeguard.baseline.slots import Slots
from edgeguard.codec import cose
from edgeguard.errors import (
    BaselineRefused,
    Corrupt,
    DecodeError,
    NotYetValid,
    OlderRevision,
    PolicyError,
    PolicyProblem,
)
from edgeguard.linux import durable

POLICY_FILE_MAX = 256 * 1024  # bytes; the largest of ours has a tenth
POLICY_FILES_MAX = 200  # per device, vendor and site together
FILES_MAX = 10_000  # entries of the directory that are looked at; history has dozens
HISTORY_MAX = 16  # baselines kept to look at and to go back to
_SUFFIX = ".egb"


class Refused(NamedTuple):
    """A file that must not come into force, and why."""

    name: str
    error: BaselineRefused


class Loaded(NamedTuple):
    """What the store holds: the baseline in force, if any, and what was refused on the way."""

    baseline: Baseline | None
    data: bytes  # signed bytes of `baseline`
    digest: bytes  # SHA-256 of `data`
    name: str
    refused: tuple[Refused, ...]


class Store:
    """`root`: of the system that runs, which says which image it is."""

    def __init__(self, state: str, root: str = "/") -> None:
        self.directory = os.path.join(state, "baseline")
        self._root = root
        self._alone = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In this block nobody else makes a revision or tidies up. Waits for whoever is at it.

        Learning, accepting and installing are processes of their own: without this, two of them count up from the
        same floor and one overwrites the other, or one tidies away the manifest that the other is about to name.
        """
        with durable.alone(self.directory):
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def floor(self) -> int:
        """The highest revision that ever was in force; 0 before the first, or when the file is damaged."""
        try:
            text = _read(os.path.join(self.directory, "floor"), 32).strip()
        except (FileNotFoundError, BaselineRefused):
            return 0
        return int(text) if text.isdigit() and len(text) <= 10 else 0

    def manifest_path(self, digest: bytes) -> str:
        return os.path.join(self.directory, digest.hex() + ".egm")

    def path_of(self, revision: int) -> str:
        return os.path.join(self.directory, _name(revision))

    def load_verified(self, trusted: Sequence[bytes], device: bytes, now: int) -> Loaded:
        """The newest valid baseline. Files that are refused are named; they never disturb the one that stands.

        One that is for an image counts only while that image runs. Where none does, the one at the floor stands.
        """
        floor, slots = self.floor(), self.slots()
        refused: list[Refused] = []
        best: tuple[Baseline, bytes, str] | None = None
        standing: tuple[Baseline, bytes, str] | None = None  # at the floor, for an image that does not run
        for name in self._candidates(floor):
            try:
                data = _read(os.path.join(self.directory, name), SIZE_MAX)
                baseline = _opened(data, trusted, device, floor, now, slots)
                if baseline.revision == floor and name != _name(floor):
                    raise OlderRevision(f"revision {floor} is in force already")
                fits = self.fits(baseline)
            except FileNotFoundError:
                continue  # pruned between listing and reading
            except BaselineRefused as error:
                refused.append(Refused(name, error))
                continue
            if not fits:
                standing = (baseline, data, name) if baseline.revision == floor else standing
            elif best is None or baseline.revision > best[0].revision:
                best = (baseline, data, name)
        if best is None:
            best = self._fallen_back(trusted, device, floor, now, refused) or standing
        if best is None:
            return Loaded(None, b"", b"", "", tuple(refused))
        if best[0].revision > floor:  # dropped in, it waited, or a power cut came between rename and floor
            self._follow(best[0])
        return Loaded(best[0], best[1], sha256(best[1]).digest(), best[2], tuple(refused))

    def _follow(self, baseline: Baseline) -> None:
        """Raise the floor to what came into force by itself. Whoever is making a revision raises it for his own: it may
        be the very one that was found here, between its file and its floor; for another, the next load does it."""
        if self._alone:
            self._raise_floor(baseline)
            return
        with durable.alone(self.directory, waiting=False) as free:
            if free and baseline.revision > self.floor():
                self._raise_floor(baseline)

    def _fallen_back(
        self, trusted: Sequence[bytes], device: bytes, floor: int, now: int, refused: list[Refused]
    ) -> tuple[Baseline, bytes, str] | None:
        """The baseline of the other image that this device may run, if that one runs: below the floor, and only the
        newest for it."""
        running = self.running()
        for slot in self.slots():
            if running is None or slot.image.sha256 != running.sha256 or slot.revision >= floor:
                continue
            name = _name(slot.revision)
            try:
                data = _read(os.path.join(self.directory, name), SIZE_MAX)
                baseline = _opened(data, trusted, device, slot.revision, now, (slot,))
                if baseline.revision == slot.revision and images.image_of(baseline) is not None and self.fits(baseline):
                    return baseline, data, name
            except FileNotFoundError:
                continue
            except BaselineRefused as error:
                refused.append(Refused(name, error))
        return None

    def current(self, trusted: Sequence[bytes], device: bytes, now: int) -> Baseline | None:
        return self.load_verified(trusted, device, now).baseline

    def install(self, data: bytes, baseline: Baseline, boot: str = "") -> str:
        """Put signed bytes that `open_signed` accepted in their place; the path. OlderRevision below the floor.

        The file is in place before the floor rises: a power cut in between leaves a valid newer file, which the next
        load takes. The other order could leave a floor that nothing reaches.
        One for an image that does not run lies there and waits; what waited for another image goes. `boot`: id of the
        boot in which it was handed over.
        """
        floor = self.floor()
        if baseline.revision <= floor:
            raise OlderRevision(f"revision {baseline.revision} is not above {floor}, which was in force")
        image, waits = images.image_of(baseline), not self.fits(baseline)
        waiting = max((slot.revision for slot in self.slots() if slot.revision > floor), default=0)
        if waits and baseline.revision <= waiting:
            raise OlderRevision(f"revision {baseline.revision} is not above {waiting}, which waits already")
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        path = self.path_of(baseline.revision)
        durable.write(path, data, 0o600)
        if image is not None:
            self._admit(image, baseline.revision, boot)
        if not waits:
            self._raise_floor(baseline)
        self.prune()
        return path

    def again(self, data: bytes, baseline: Baseline, boot: str) -> bool:
        """Are these the very bytes of an image's baseline that may be in force here? Then that image is expected."""
        image = images.image_of(baseline)
        known = any(slot.image == image and slot.revision == baseline.revision for slot in self.slots())
        if image is None or not known:
            return False
        try:
            same = _read(self.path_of(baseline.revision), SIZE_MAX) == data
        except (FileNotFoundError, BaselineRefused):
            return False
        if same:
            self._admit(image, baseline.revision, boot)
        return same

    # -- images

    def running(self) -> Image | None:
        return images.lies_in(self._root)

    def fits(self, baseline: Baseline) -> bool:
        """Is it for any system, or for the image that runs? Raises Corrupt."""
        image = images.image_of(baseline)
        if image is None:
            return True
        running = self.running()
        return running is not None and running.sha256 == image.sha256

    def slots(self) -> Slots:
        """The images that may run here, the expected one last."""
        try:
            return slotting.from_text(_read(os.path.join(self.directory, "slots"), slotting.SIZE_MAX))
        except (FileNotFoundError, BaselineRefused):
            return ()

    def _admit(self, image: Image, revision: int, boot: str) -> None:
        slots, running = self.slots(), self.running()
        after = slotting.handed_over(slots, image, revision, boot, running.sha256 if running is not None else None)
        if after != slots:
            durable.write(os.path.join(self.directory, "slots"), slotting.to_text(after), 0o600)

    def history(self, trusted: Sequence[bytes]) -> Iterator[tuple[str, Baseline | BaselineRefused]]:
        """Every baseline that is kept, newest first, with what can be said of it."""
        for revision in sorted(self._revisions(), reverse=True):
            name = _name(revision)
            try:
                yield name, open_trusted(_read(os.path.join(self.directory, name), SIZE_MAX), trusted)
            except FileNotFoundError:
                continue
            except BaselineRefused as error:
                yield name, error

    def rollback(self, revision: int, trusted: Sequence[bytes], seed: bytes, now: int, note: str) -> bytes:
        """Signed bytes with the content of an earlier revision under a new one; `install` puts them in force.

        FileNotFoundError if it is not kept any more.
        """
        old = open_trusted(_read(self.path_of(revision), SIZE_MAX), trusted)
        return sign(reissue(old, self.floor() + 1, now, self.parent(), note), seed)

    def parent(self) -> bytes | None:
        """SHA-256 of the signed bytes in force: the `parent` of the next."""
        try:
            return sha256(_read(self.path_of(self.floor()), SIZE_MAX)).digest()
        except (FileNotFoundError, BaselineRefused):
            return None

    def prune(self) -> None:
        """Forget old history, what waits for an image that will not come, and manifests that no kept baseline names."""
        floor, slots = self.floor(), {slot.revision for slot in self.slots()}
        good = sorted(revision for revision in self._revisions() if revision <= floor or revision in slots or not slots)
        kept = sorted({*good[-HISTORY_MAX:], *(slots & set(good))})
        for revision in self._revisions():
            if revision not in kept:
                os.unlink(self.path_of(revision))
        named = {self.manifest_path(digest) for digest in self._manifests(kept)}
        for name in self._names(".egm"):
            path = os.path.join(self.directory, name)
            if path not in named:
                os.unlink(path)

    def _manifests(self, revisions: Sequence[int]) -> Iterator[bytes]:
        """Digests that kept files name. Their signatures do not matter here: at worst, a manifest is kept."""
        for revision in revisions:
            try:
                payload = cose.parse1(_read(self.path_of(revision), SIZE_MAX)).payload
                files = Baseline.from_cbor(payload).files
            except (FileNotFoundError, BaselineRefused, DecodeError):
                continue
            if files is not None:
                yield files.sha256

    def _raise_floor(self, baseline: Baseline) -> None:
        image = images.image_of(baseline)
        if image is not None:  # one that was dropped in: its image may be fallen back to later
            known = next((slot for slot in self.slots() if slot.image.sha256 == image.sha256), None)
            if known is None or known.revision < baseline.revision:
                self._admit(image, baseline.revision, "")
        durable.write(os.path.join(self.directory, "floor"), b"%d\n" % baseline.revision, 0o600)

    def _names(self, suffix: str) -> list[str]:
        try:
            with os.scandir(self.directory) as entries:
                names = [entry.name for entry, _ in zip(entries, range(FILES_MAX), strict=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def _revisions(self) -> list[int]:
        return [number for name in self._names(_SUFFIX) if (number := _number(name)) is not None]

    def _candidates(self, floor: int) -> list[str]:
        """What is not history: the standing one, anything newer, and files that somebody dropped in."""
        return [name for name in self._names(_SUFFIX) if (number := _number(name)) is None or number >= floor]


def _opened(
    data: bytes, trusted: Sequence[bytes], device: bytes, floor: int, now: int, slots: slotting.Slots
) -> Baseline:
    """`open_signed`. A baseline that was accepted for one of these images had begun then: where it is said to begin
    later, the clock is behind, as it is on many boards when they start."""
    try:
        return open_signed(data, trusted, device, floor, now)
    except NotYetValid:
        baseline = open_trusted(data, trusted)
        image = images.image_of(baseline)
        if not any(slot.image == image and slot.revision == baseline.revision for slot in slots):
            raise
        return open_signed(data, trusted, device, floor, baseline.not_before)


def read_policy_dirs(vendor: str, site: str) -> list[tuple[str, bytes]]:
    """The policy files in the order of their names, as (path, content).

    A site file masks the vendor file of the same name; an empty one, or a link to /dev/null, switches it off.
    """
    paths = {name: os.path.join(vendor, name) for name in _policy_names(vendor)}
    paths.update({name: os.path.join(site, name) for name in _policy_names(site)})
    if len(paths) > POLICY_FILES_MAX:
        raise _policy_problem(site, f"{len(paths)} policy files", f"at most {POLICY_FILES_MAX}")
    found = [(paths[name], policy_file(paths[name])) for name in sorted(paths)]
    return [(path, data) for path, data in found if data.strip()]


def _policy_names(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _policy_problem(directory, f"cannot be read: {error.strerror}", "") from error
    return [name for name in names if name.endswith(".toml") and not name.startswith(".")]


def policy_file(path: str) -> bytes:
    """The content; b"" for a link to /dev/null."""
    if os.path.islink(path) and os.path.realpath(path) == os.devnull:
        return b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _policy_problem(path, "not a regular file", "")
            data = file.read(POLICY_FILE_MAX + 1)
    except OSError as error:
        raise _policy_problem(path, f"cannot be read: {error.strerror}", "") from error
    if len(data) > POLICY_FILE_MAX:
        raise _policy_problem(path, "too large", f"at most {POLICY_FILE_MAX // 1024} KiB")
    return data


def _policy_problem(path: str, message: str, expected: str) -> PolicyError:
    return PolicyError([PolicyProblem(path, 1, 1, message, expected)])


def _read(path: str, limit: int) -> bytes:
    """A regular file of bounded size; a directory, a FIFO or a link instead of it is Corrupt."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Corrupt(f"cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Corrupt("not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Corrupt(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > limit:
        raise Corrupt(f"larger than {limit} bytes")
    return data


def _name(revision: int) -> str:
    return f"{revision:08d}{_SUFFIX}"


def _number(name: str) -> int | None:
    """The revision in a name that the store itself gave."""
    stem = name.removesuffix(_SUFFIX)
    return int(stem) if stem.isascii() and stem.isdigit() and name == _name(int(stem)) else None
