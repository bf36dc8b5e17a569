"""The image that a baseline is for, and the image that lies in a root directory.

A baseline for an image has one reference value of kind `image`: the image's name and the SHA-256 of its os-release.
That file is how a system says which image it is (IMAGE_ID, IMAGE_VERSION; os-release(5)), so each image must have its
own. It proves nothing about the other files, and need not: a system that only claims to be another image is judged by
that image's baseline and differs from it everywhere.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from typing import NamedTuple

from edgeguard.baseline.document import Baseline
from edgeguard.errors import Corrupt

KIND = "image"
OS_RELEASE = ("usr/lib/os-release", "etc/os-release")  # the vendor's first: what lies in /etc may be laid over it
SIZE_MAX = 64 * 1024  # bytes of os-release; a real one has 300
NAME_MAX = 120  # characters
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Image(NamedTuple):
    name: str  # for people: "pump 2026.11.2"
    sha256: bytes  # of its os-release


def image_of(baseline: Baseline) -> Image | None:
    """The image that this baseline is for, None where it is for any system. Raises Corrupt."""
    table = baseline.references.get(KIND)
    if not table:
        return None
    if len(table) > 1:
        raise Corrupt(f"revision {baseline.revision} names {len(table)} images")
    name, columns = next(iter(table.items()))
    digest = (columns or {}).get("sha256")
    if not isinstance(digest, bytes) or len(digest) != sha256().digest_size:
        raise Corrupt(f"revision {baseline.revision} names an image without its SHA-256")
    if not is_name(name):
        raise Corrupt(f"revision {baseline.revision} has no name for its image")
    return Image(name, digest)


def is_name(text: str) -> bool:
    """One line that a person reads."""
    return 0 < len(text) <= NAME_MAX and text.isprintable() and text == text.strip()


def for_image(baseline: Baseline, image: Image) -> Baseline:
    """The baseline, for this image only."""
    return baseline._replace(references={**baseline.references, KIND: {image.name: {"sha256": image.sha256}}})


def lies_in(root: str) -> Image | None:
    """The image whose root directory this is; None where no os-release says it. No symlink is followed.

    The name is "" where os-release has no IMAGE_VERSION: then it is a system and no image of somebody's.
    """
    data = os_release(root)
    return None if data is None else Image(name_in(data), sha256(data).digest())


def os_release(root: str) -> bytes | None:
    """The content of os-release in a root directory."""
    for path in OS_RELEASE:
        try:
            data = _read(root, path)
        except OSError:
            continue
        if len(data) <= SIZE_MAX:
            return data
    return None


def _read(root: str, path: str) -> bytes:
    *folders, name = path.split("/")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            deeper = os.open(folder, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        file = os.open(name, _FILE, dir_fd=fd)
    finally:
        os.close(fd)
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{path} is not a regular file")
        return opened.read(SIZE_MAX + 1)


def name_in(data: bytes) -> str:
    """IMAGE_ID and IMAGE_VERSION of an os-release, as "pump 2026.11.2"; "" without IMAGE_VERSION."""
    found: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and key in ("IMAGE_ID", "IMAGE_VERSION"):
            found[key] = _unquoted(value)
    if not found.get("IMAGE_VERSION"):
        return ""
    return f"{found.get('IMAGE_ID', '')} {found['IMAGE_VERSION']}".strip()[:NAME_MAX]


def _unquoted(value: str) -> str:
    """A value of os-release is a word of the shell; those of images need no more than quotes."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return "".join(letter for letter in value if letter.isprintable())
