"""What comes on a stick: the operator's key, exports that were encrypted to it, and receipts to carry back."""

from __future__ import annotations

import os

from edgeguard.codec import cose, encrypt
from edgeguard.collector import statements
from edgeguard.collector.ingest import Device, Ingest
from edgeguard.errors import DecodeError, SegmentRefused, SignatureError
from edgeguard.records import outbox, wire

KEY, PUBLIC = "operator.key", "operator.pub"
SUFFIXES = (".egx", ".egseq", outbox.SUFFIX, outbox.EPOCH_SUFFIX)


def make_key(directory: str) -> bytes:
    """A key pair in the collector's directory; the public one is for devices. Raises FileExistsError: never twice."""
    seed = os.urandom(encrypt.PUBLIC_SIZE)
    public = encrypt.public_of(seed)
    for name, data, mode in ((KEY, seed, 0o600), (PUBLIC, public.hex().encode() + b"\n", 0o644)):
        fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    return public


def files(paths: list[str]) -> list[str]:
    """The files meant: a folder stands for the exports and segments in it. Statements come first: they vouch for the
    keys of segments. Raises OSError."""
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            found += [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(SUFFIXES)]
        else:
            found.append(path)
    return sorted(found, key=lambda path: not path.endswith(outbox.EPOCH_SUFFIX))


def segments(data: bytes, directory: str) -> list[bytes]:
    """The segments and statements of a file's bytes. Raises SegmentRefused, whatever is wrong with it."""
    if data.startswith(encrypt.TAG):
        try:
            seed = cose.load_seed([os.path.join(directory, KEY)])
        except FileNotFoundError as error:
            raise SegmentRefused("it is encrypted, and there is no operator's key here (operator-key)") from error
        try:
            data = encrypt.decrypt(data, seed, encrypt.EXPORT_AAD)
        except (DecodeError, SignatureError) as error:
            raise SegmentRefused(str(error)) from error
    return wire.split(data)


def devices(ingest: Ingest, parts: list[bytes]) -> list[Device]:
    """Whose segments these say to be, of those we know."""
    found = {}
    for part in parts:
        identity = statements.owner(part)
        device = ingest.device(identity) if identity else None
        if identity and device is not None:
            found[identity] = device
    return list(found.values())


def write_receipt(ingest: Ingest, device: Device, folder: str) -> str:
    """What is committed for this device, in a file to carry back. A later receipt takes the place of an earlier one."""
    path = os.path.join(folder, f"{device.name}.egr")
    temporary = f"{path}.new"
    with open(temporary, "wb") as file:
        file.write(ingest.receipt(device))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path
