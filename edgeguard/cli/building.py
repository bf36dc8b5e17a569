"""`edgeguard baseline build`: a baseline made of an image, without a device. Reads files, needs no daemon, and no root
where the image's files can be read."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from edgeguard.cli import imaging, pages
from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.cli.words import count
from edgeguard.errors import ControlError, DecodeError

BASELINE_MAX = 16 * 1024 * 1024  # bytes; document.SIZE_MAX
CHOICES = ("auto", "sha256", "blake2b")  # baseline.contents.CHOICES
FROM = ("listener", "usb", "sysctl", "module", "mount")  # kinds that no image has, and a device does


def arguments(actions: Any) -> None:
    parser = actions.add_parser("build", help="make a baseline of an image", allow_abbrev=False)
    parser.add_argument("--root", required=True, metavar="DIR", help="the image's root directory, mounted or unpacked")
    parser.add_argument("--policy", action="append", default=[], metavar="PATH", help="files or directories (its own)")
    parser.add_argument("--key", default="", metavar="FILE", help="32 bytes: the private Ed25519 key (not signed)")
    parser.add_argument(
        "--to", required=True, metavar="FILE", help="where to write; the manifest goes beside it (.egm)"
    )
    parser.add_argument("--revision", type=int, required=True, metavar="N", help="above all that the device had")
    parser.add_argument("--image", default="", metavar="NAME", help="the image's name (IMAGE_ID, IMAGE_VERSION)")
    parser.add_argument(
        "--from", dest="learned", default="", metavar="FILE", help="baseline of a device: ports, USB ..."
    )
    parser.add_argument("--digest", choices=CHOICES, help="of the files' contents (as the policy says; auto: sha256)")
    parser.add_argument("--note", default="", metavar="TEXT", help="a remark that history shows")


def run(given: argparse.Namespace, console: Console) -> int:
    from edgeguard.baseline.contents import chosen
    from edgeguard.baseline.document import REVISION_MAX, compile_baseline, sign
    from edgeguard.codec import cose
    from edgeguard.codec.digests import Algorithm

    if not 1 <= given.revision <= REVISION_MAX:
        raise ControlError("InvalidParameter", f"--revision: expected a number from 1 to {REVISION_MAX}")
    root = imaging.root_of(given.root)
    seed = cose.load_seed([given.key]) if given.key else b""
    now = _now(console)
    policy = imaging.policy_of(root, given.policy, now)
    if given.digest:
        policy = policy._replace(settings=policy.settings._replace(learn_digest=given.digest))
    # What processor the devices have, the one that builds cannot know.
    algorithm = chosen(policy, Algorithm.SHA256)
    learned = _learned(given.learned)
    image = _image(root, given.image)
    said: list[str] = []
    with _beside(manifest_path(given.to)) as file:
        files = _files(console, root, policy, file, said, algorithm)
        references = {**learned, **_rest(root, now, said)}
        baseline = compile_baseline(policy, references, files, given.revision, now, note=given.note)
        baseline = _bound(baseline, image)
        data = sign(baseline, seed) if seed else baseline.to_cbor()
        if len(data) > BASELINE_MAX:
            raise ControlError("TooLarge", f"the baseline has {len(data)} bytes, at most {BASELINE_MAX}")
        with _beside(given.to) as out:
            out.write(data)
    _remarks(console, given, root, image, said)
    facts = {"file": given.to, "manifest": manifest_path(given.to), "revision": given.revision, "signed": bool(seed)}
    facts["contents"] = algorithm.value
    counts = {kind: len(table) for kind, table in sorted(baseline.references.items()) if kind != "image"}
    if console.form != "text":
        console.json(
            {"v": 1, **facts, "image": image.name if image else None, "files": files.entries, "references": counts}
        )
        return 0
    name = f" for image {image.name}" if image else ""
    rest = "".join(f", {number} {kind}" for kind, number in counts.items() if number)
    console.text(f"Wrote {escape(given.to)}: r{given.revision}{name}, {count(files.entries, 'file')}{rest}.")
    return 0


def manifest_path(baseline: str) -> str:
    """The file manifest that lies beside a baseline."""
    return f"{baseline.removesuffix('.egb')}.egm"


def _now(console: Console) -> int:
    """ms. A build that is to give the same bytes again sets SOURCE_DATE_EPOCH."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(epoch) * 1000 if epoch.isascii() and epoch.isdigit() and len(epoch) <= 12 else console.now


def _image(root: str, name: str) -> Any:
    """Which image this is; None where os-release does not say it and nobody else did."""
    from edgeguard.baseline.image import is_name, lies_in

    found = lies_in(root)
    if name and not is_name(name):
        raise ControlError("InvalidParameter", "--image: expected one line of at most 120 characters")
    if name and found is None:
        raise ControlError("NoImage", "there is no /usr/lib/os-release in it, by which a device could know the image")
    if found is None or not (name or found.name):
        return None
    return found._replace(name=name or found.name)


def _bound(baseline: Any, image: Any) -> Any:
    from edgeguard.baseline.image import for_image

    return for_image(baseline, image) if image is not None else baseline


def _files(console: Console, root: str, policy: Any, file: BinaryIO, said: list[str], algorithm: Any) -> Any:
    """Read every watched file into a manifest. One that cannot be read ends it: it would differ on every device."""
    from edgeguard.baseline.document import ManifestRef
    from edgeguard.codec import manifest
    from edgeguard.sensors import sweep

    def progress(seen: Any) -> None:
        state = {"phase": "files", "done": seen.files, "total": seen.total_files, "bytes": seen.bytes}
        console.progress(pages.progress(state, console.columns))

    with tempfile.TemporaryFile() as observed:
        summary = sweep.learn(policy.watches, root, file, observed, None, progress, algorithm=algorithm)
    console.end_progress()
    if summary.unreadable:
        imaging.tell(console, summary.notes)
        text = f"{count(summary.unreadable, 'file')} could not be read; nothing was written. Run it as root, or as who "
        raise ControlError("Unreadable", text + "unpacked the image (fakeroot)")
    said += summary.notes
    said += [f"{path}: not entered: {why}" for path, why in summary.skipped]
    file.flush()
    digest, size = manifest.digest(file.fileno()), os.fstat(file.fileno()).st_size
    return ManifestRef(digest, size, manifest.Reader(file.fileno()).count)


def _rest(root: str, now: int, said: list[str]) -> Any:
    from edgeguard.sensors.offline import Offline, references

    offline = Offline(root)
    found = references(offline.observe(now))
    if offline.unread:
        raise ControlError("Unreadable", f"{'; '.join(offline.unread)}; nothing was written")
    said += offline.notes
    return found


def _learned(path: str) -> Any:
    """What a device that ran the image learned of what no image has."""
    if not path:
        return {}
    from edgeguard.baseline.document import Baseline
    from edgeguard.codec import cose

    data = imaging.read(path, BASELINE_MAX)
    try:
        payload = cose.parse1(data).payload
    except DecodeError:
        payload = data
    references = Baseline.from_cbor(payload).references
    return {kind: references[kind] for kind in FROM if kind in references}


def _remarks(console: Console, given: argparse.Namespace, root: str, image: Any, said: list[str]) -> None:
    imaging.tell(console, said)
    if image is None:
        console.remark(
            "edgeguard: os-release has no IMAGE_VERSION: this baseline is for any system, and cannot wait for an image"
        )
    if not given.key:
        console.remark("edgeguard: not signed; sign it with `edgeguard baseline sign`")
    if not given.learned:
        console.remark(f"edgeguard: not in an image: {imaging.not_there()}.")
        console.remark("edgeguard: devices report what they have of these; one that learned knows it (--from FILE)")
    if os.stat(root).st_uid != 0:
        console.remark("edgeguard: the root directory does not belong to root: were owners lost when it was unpacked?")


@contextlib.contextmanager
def _beside(path: str) -> Iterator[BinaryIO]:
    """A whole new file or none: it gets its name when the block ends well."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "w+b") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
