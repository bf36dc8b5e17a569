"""The helper's side of image updates: what was handed over is taken in, and what the running image means is said.

    EXCHANGE/images/<ns>-<pid>/baseline.egb, baseline.egm    put there by `edgeguard-image-update`; hidden while it asks
    STATE/baseline/ran                                       revision whose image was told of last, in decimal

A hand-over is verified like any baseline from elsewhere. Whatever is wrong with it, the baseline that stands stays.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from hashlib import sha256
from typing import Any

from edgeguard.baseline import document, store
from edgeguard.baseline.document import Baseline, ManifestRef
from edgeguard.baseline.image import Image, image_of
from edgeguard.codec.manifest import algorithm_in
from edgeguard.daemon.frames import Out
from edgeguard.daemon.signing import Trust, keep_copies, read_regular, trust_of
from edgeguard.daemon.sweeping import now_ms
from edgeguard.errors import BaselineRefused, Corrupt, DecodeError, OlderRevision
from edgeguard.linux import durable
from edgeguard.sensors import reading
from edgeguard.settings import Settings

MANIFEST_MAX = 1 << 30  # bytes; the manifest's own bound
NAME = re.compile(r"(\d{20})-\d{1,10}")
INTERRUPTED_S = 600  # so old, one that is hidden still was left by a hook that was ended
WAITING_MAX = 8  # hand-overs that are looked at in one go; one is usual
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def spool_of(settings: Settings) -> str:
    return f"{settings.paths.exchange}/images"


def boot_id(root: str) -> str:
    """Of the system that runs; "" where it is not told."""
    for place in dict.fromkeys((root, "/")):
        with suppress(OSError):
            return reading.read(reading.under(place, "/proc/sys/kernel/random/boot_id"), 64).decode("ascii").strip()
    return ""


# -- taking in


def take(settings: Settings, trust: Trust, shelf: store.Store, path: str, manifest: str, now: int) -> dict[str, Any]:
    """Install a baseline from elsewhere: it is in force from now on, or waits for its image. Answers {"baseline",
    "previous", "image", "waits", "again"}. Raises BaselineRefused, OSError. The verified bytes are the stored bytes."""
    data = read_regular(path, document.SIZE_MAX)
    boot = boot_id(settings.paths.root)
    with shelf.alone():
        previous = shelf.floor()
        baseline = document.open_trusted(data, trust.trusted)
        image = image_of(baseline)
        again = shelf.again(data, baseline, boot)
        if not again:
            document.open_signed(data, trust.trusted, trust.device, previous, now)
            if baseline.revision == previous:
                raise OlderRevision(f"revision {previous} is in force already")
            if baseline.files is not None:
                _keep_manifest(shelf, baseline.files, manifest)
            shelf.install(data, baseline, boot)
        waits = not shelf.fits(baseline)
        if waits:  # not the floor: this device may have fallen back
            standing = shelf.current(trust.trusted, trust.device, now)
            previous = standing.revision if standing is not None else 0
    return {"baseline": baseline, "previous": previous, "image": image, "waits": waits, "again": again}


def _keep_manifest(shelf: store.Store, wanted: ManifestRef, path: str) -> None:
    final = shelf.manifest_path(wanted.sha256)
    if os.path.exists(final) and not path:
        return
    if not path:
        raise Corrupt(f"it needs the file manifest {wanted.sha256.hex()}.egm: give it with --manifest")
    data = read_regular(path, min(MANIFEST_MAX, wanted.size + 1))
    if len(data) != wanted.size or sha256(data).digest() != wanted.sha256:
        raise Corrupt("the file manifest is not the one that this baseline was signed with")
    try:
        algorithm_in(data)
    except DecodeError as error:
        raise Corrupt(f"the file manifest cannot be used here: {error}") from error
    durable.write(final, data, 0o600)


def take_all(settings: Settings, trust: Trust, shelf: store.Store, now: int) -> list[list[str]]:
    """What was handed over while no daemon ran. Answers [name, code, why] for what is refused. Where the disk is full
    it is tried again at the next start."""
    spool = spool_of(settings)
    try:
        names = sorted((name for name in os.listdir(spool) if _is_ready(name, now)), key=lambda name: name.lstrip("."))
    except OSError:
        return []
    refused = []
    for name in names[-WAITING_MAX:]:
        folder = f"{spool}/{name}"
        manifest = f"{folder}/baseline.egm"
        try:
            take(settings, trust, shelf, f"{folder}/baseline.egb", manifest if os.path.exists(manifest) else "", now)
        except BaselineRefused as error:
            refused.append([f"image update {name}", error.code, str(error)])
        except OSError as error:
            refused.append([f"image update {name}", "EG-BASE-006", f"it cannot be kept: {error.strerror}"])
            if error.errno in FULL:
                continue
        forget(folder)
    for name in names[:-WAITING_MAX]:
        forget(f"{spool}/{name}")
    return refused


def _is_ready(name: str, now: int) -> bool:
    match = NAME.fullmatch(name.removeprefix("."))
    return match is not None and (name[0] != "." or abs(now - int(match[1]) // 1_000_000) > INTERRUPTED_S * 1000)


def forget(folder: str) -> None:
    with suppress(OSError):
        for inner in os.listdir(folder):
            os.unlink(f"{folder}/{inner}")
        os.rmdir(folder)


# -- what the running image means


def words(settings: Settings, trust: Trust, shelf: store.Store, baseline: Baseline) -> list[Any] | None:
    """[name of the image that runs and is judged as such, what is wrong, did another one run before?]; None where this
    device knows of no image."""
    if not shelf.slots():
        return None
    image = image_of(baseline)
    name = image.name if image is not None and shelf.fits(baseline) else ""
    switched = False
    if image is not None and name:
        old = _told(trust, shelf)
        before = image_of(old) if old is not None else None
        switched = before is not None and before.sha256 != image.sha256
        if not switched and (old is None or old.revision != baseline.revision):
            ran(settings.paths.state, baseline.revision)
    return [name, _problem(shelf, baseline, name, boot_id(settings.paths.root)), switched]


def _problem(shelf: store.Store, baseline: Baseline, name: str, boot: str) -> str:
    """ "" where all is well, and where the update has not been booted yet."""
    slots, running = shelf.slots(), shelf.running()
    expected = slots[-1]
    runs = next((slot for slot in slots if running is not None and slot.image.sha256 == running.sha256), None)
    if runs is expected or (boot and boot == expected.boot):
        return ""  # what was handed over since this start is not booted yet; the next start shows
    if runs is not None:
        judged = "" if name else f", whose baseline is not valid: r{baseline.revision} judges it"
        return f"this device was updated to image {expected.image.name} and runs image {runs.image.name}{judged}"
    known = ", ".join(slot.image.name for slot in reversed(slots))
    return f"what runs is none of the images that this device may run ({known}); r{baseline.revision} judges it"


def switch(settings: Settings, _request: dict[str, Any], out: Out) -> None:
    """Verb `image`: what the image that runs now differs in from the one before. Answers {"before", "now", "files",
    "revision", "back"}; nothing where there was no other. Then it keeps copies of what the policy wants copies of."""
    from edgeguard.daemon.history import file_lines

    trust = trust_of(settings)
    shelf = store.Store(settings.paths.state, settings.paths.root)
    baseline, old = shelf.current(trust.trusted, trust.device, now_ms()), _told(trust, shelf)
    before = image_of(old) if old is not None else None
    now = image_of(baseline) if baseline is not None else None
    if baseline is None or old is None or before is None or now is None:
        return
    files = sum(1 for _ in file_lines(settings, old, baseline))
    back = baseline.revision < shelf.floor()
    facts = {"before": before.name, "now": now.name, "files": files, "revision": baseline.revision, "back": back}
    out.say(facts)
    keep_copies(settings, trust, baseline)


def _told(trust: Trust, shelf: store.Store) -> Baseline | None:
    """The baseline of the image that was told of last."""
    try:
        with open(f"{shelf.directory}/ran", "rb") as file:
            text = file.read(16).strip()
        with open(shelf.path_of(int(text)), "rb") as file:
            return document.open_trusted(file.read(document.SIZE_MAX + 1), trust.trusted)
    except (OSError, ValueError, BaselineRefused):
        return None


def ran(state: str, revision: int) -> None:
    """From now on the image of this revision counts as told of."""
    durable.write(f"{state}/baseline/ran", b"%d\n" % revision, 0o600)


def described(answer: dict[str, Any]) -> dict[str, Any]:
    """The part of the answer of `install` that is about images."""
    image: Image | None = answer["image"]
    return {"image": image.name if image is not None else None, "waits": answer["waits"], "again": answer["again"]}
