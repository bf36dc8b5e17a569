"""Verb `sweep` of the helper: the daemon says which watches and manifest are in force, this finds what changed."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from edgeguard.codec import digests, sha
from edgeguard.codec import manifest as codec
from edgeguard.codec.digests import Algorithm, openssl
from edgeguard.codec.layers import Layers, Lookup
from edgeguard.daemon.frames import Out, swept_path, watches_from_plain
from edgeguard.daemon.kept_file import Kept
from edgeguard.errors import DecodeError
from edgeguard.linux import durable, priority
from edgeguard.model import Origin, Watch
from edgeguard.sensors import sweep as sweeps
from edgeguard.sensors.looker import Progress, Summary
from edgeguard.settings import Settings

READ = 1 << 20
NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class Manifest(NamedTuple):
    """Which file manifest the signed baseline names."""

    sha256: bytes
    size: int


def sweep(settings: Settings, request: dict[str, Any], out: Out) -> None:
    """The verb. Answers with observations, progress and {"summary": {...}}."""
    watches = watches_from_plain(request["watches"])
    origin = Origin(request["origin"])
    started = time.monotonic()
    if request["low"]:
        priority.background()
    with contextlib.ExitStack() as stack:
        # Checking its digest costs as much as some 20,000 unchanged files. Each slice of the deep sweep does so, too.
        def manifest() -> Lookup | None:
            return stack.enter_context(opened_references(settings.paths.state, request))

        if request["targets"]:
            from edgeguard.sensors.revisit import revisit  # rarer than whole sweeps, which are to be small

            observed: BinaryIO | None = None
            with contextlib.suppress(FileNotFoundError):
                observed = stack.enter_context(open(f"{settings.paths.state}/observed.db", "rb"))
            targets = [os.fsdecode(path) for path in request["targets"]]
            summary = revisit(
                watches,
                settings.paths.root,
                manifest(),
                targets,
                now_ms(),
                origin,
                out.observe,
                observed_in=observed,
                hash_file_max=settings.budget.hash_file_max,
            )
        else:
            summary = _whole(settings, request, watches, origin, manifest, out)
    out.flush()
    out.say({"summary": summary_to_plain(summary, time.monotonic() - started)})


def _whole(
    settings: Settings,
    request: dict[str, Any],
    watches: tuple[Watch, ...],
    origin: Origin,
    manifest: sweeps.References,
    out: Out,
) -> Summary:
    """Everything that is watched. What was seen lies in observed.db.swept afterwards, durably.

    The daemon puts it in place (`sweeps.adopt`) when it has kept what it was told: the next sweep tells it no more.
    """
    state = settings.paths.state
    meter = Meter(out, "files")
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(Kept(swept_path(state), NEW))
        new = io.BufferedWriter(kept)
        old: BinaryIO | None = None
        with contextlib.suppress(FileNotFoundError):
            old = stack.enter_context(open(f"{state}/observed.db", "rb"))
        summary = sweeps.sweep(
            watches,
            settings.paths.root,
            manifest,
            old,
            new,
            now_ms(),
            origin,
            request["full"],
            out.observe,
            meter.progress,
            compare=request["compare"],
            cached=request.get("cached", False),  # a daemon from before an upgrade does not say it
            since=request.get("since"),  # nor this
            algorithm=digests.named(request.get("digest", "sha256")),  # nor this
            hash_file_max=settings.budget.hash_file_max,
        )
        if summary.written:
            new.flush()
            summary.written = kept.keep()
        if kept.problem:  # what was found is told all the same; the next sweep finds it again
            summary.note(f"what was seen is not kept: {kept.problem}")
            summary.began = 0
    return summary


@contextmanager
def opened_references(state: str, request: dict[str, Any]) -> Iterator[Lookup | None]:
    """The manifest of the baseline, and what packages brought since over it, as a request names them."""
    # Of files that are read by BLAKE2b: OpenSSL costs such a helper more than the slower SHA-256 of one manifest.
    new = sha.new if request.get("digest") == Algorithm.BLAKE2B.value else openssl
    with opened_manifest(state, request["manifest"], new=new) as base:
        named = request.get("overlay")
        if named is None:
            yield base
            return
        with opened_manifest(state, named, "upgrades", new=new) as top:
            assert top is not None
            yield Layers(base, top)


@contextmanager
def opened_manifest(
    state: str, reference: list[Any] | None, folder: str = "baseline", *, new: sha.NewHash = openssl
) -> Iterator[codec.Reader | None]:
    """The manifest that something signed pins, checked against its digest. Raises DecodeError for any other file."""
    if reference is None:
        yield None
        return
    digest, size = reference
    with open(f"{state}/{folder}/{digest.hex()}.egm", "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size or file_digest(file, new) != digest:
            raise DecodeError("the file manifest is not the one that was signed")
        yield codec.Reader(file.fileno())


def file_digest(file: Any, new: sha.NewHash = openssl) -> bytes:
    """SHA-256 of a whole open file."""
    total = new()
    file.seek(0)
    while chunk := file.read(READ):
        total.update(chunk)
    return total.digest()


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path`, durably, when the block ends well."""
    temporary = f"{path}.new"
    with open(os.open(temporary, NEW, 0o600), "w+b") as file:
        try:
            yield file
        except BaseException:
            os.unlink(temporary)
            raise
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    durable.sync(os.path.dirname(path))


class Meter:
    """Progress with an estimate of the time left, at most twice a second."""

    EVERY_S = 0.5

    def __init__(self, out: Out, phase: str) -> None:
        self._out = out
        self._phase = phase
        self._started = time.monotonic()
        self._told = 0.0

    def progress(self, seen: Progress) -> None:
        now = time.monotonic()
        if now - self._told < self.EVERY_S:
            return
        self._told = now
        # Reading dominates; where nothing is read (an incremental sweep) names count.
        share = seen.bytes / seen.total_bytes if seen.total_bytes else seen.files / max(1, seen.total_files)
        elapsed = now - self._started
        eta = int(elapsed / share - elapsed) if share > 0.01 else None
        self._out.progress(self._phase, seen.files, seen.total_files or None, seen.bytes, eta)


def summary_to_plain(summary: Summary, seconds: float) -> dict[str, Any]:
    return {
        "files": summary.files,
        "subjects": summary.subjects,
        "bytes": summary.bytes_read,
        "emitted": summary.emitted,
        "unreadable": summary.unreadable,
        "damaged": summary.damaged,
        "written": summary.written,
        "notes": list(summary.notes),
        "skipped": [[path, why] for path, why in summary.skipped],
        "began": summary.began,
        "milliseconds": int(seconds * 1000),
    }


def now_ms() -> int:
    return time.time_ns() // 1_000_000
