"""The keys of a device: its own, made on first start, and those of the fleet that it trusts.

Where one of the fleet's keys lies in the trust directory, only they count: a device that is enrolled believes no
baseline that it could have signed itself.
"""

from __future__ import annotations

import contextlib
import os

from edgeguard import identity
from edgeguard.codec import cose
from edgeguard.errors import DecodeError, IdentityUnusable, SettingsError
from edgeguard.linux import durable
from edgeguard.settings import Settings

TRUSTED_MAX = 64  # keys of a fleet; two or three are in use at a time


def own(settings: Settings) -> cose.Signer:
    """What signs as this device; a key in a file is made now if there is none. Raises what `identity.load` raises."""
    if settings.identity.kind == "file":
        return cose.Signer(ensure_device_key(settings.paths.state))
    signer = identity.load(settings)
    if settings.identity.kind == "credential":
        _publish(os.path.join(settings.paths.state, "keys"), signer.public)
    return signer


def ensure_device_key(state: str) -> bytes:
    """The device's private key, made now if there is none. systemd's credential store comes first."""
    directory = os.path.join(state, "keys")
    path = os.path.join(directory, "device.key")
    try:
        seed = cose.load_seed(identity.seed_files(state))
    except FileNotFoundError:
        _must_be_new(state)
        seed = _make(directory, path)
    _publish(directory, cose.public_of(seed))
    return seed


def device_public(state: str) -> bytes:
    """The public key as published, of either kind; needs no cryptography. SettingsError if there is none."""
    return _public(identity.published(state))


def trusted_keys(trust_dir: str, device_pub: bytes) -> tuple[list[bytes], str]:
    """Whose baselines count, and whether that is "fleet" or "local"."""
    try:
        names = sorted(name for name in os.listdir(trust_dir) if name.endswith(".pub") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        return [device_pub], "local"
    if len(names) > TRUSTED_MAX:
        raise SettingsError(f"{trust_dir}: {len(names)} keys, at most {TRUSTED_MAX}")
    return [read_public(os.path.join(trust_dir, name)) for name in names], "fleet"


def read_public(path: str) -> bytes:
    """A public key of 64 hex digits."""
    public = _public(path)
    if len(public) != cose.PUBLIC_SIZE:
        raise SettingsError(f"{path}: expected a public key of {2 * cose.PUBLIC_SIZE} hex digits")
    return public


def _public(path: str) -> bytes:
    try:
        return cose.load_public(path)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise SettingsError(f"{path}: expected a public key of {2 * cose.PUBLIC_SIZE} hex digits") from error


def _make(directory: str, path: str) -> bytes:
    """A new key, on disk before it is used: a baseline signed by a key that a power cut took would lock us out."""
    with durable.alone(directory):  # the daemon, and the hook of an update, say
        temporary = f"{path}.new"
        seed = cose.generate_seed()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # left by a crash: never used, because it never got its name
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(seed)
            file.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)  # not rename: whoever was first wins, a key is never replaced
        except FileExistsError:
            seed = cose.load_seed([path])
        os.unlink(temporary)
        durable.sync(directory)
    return seed


def _must_be_new(state: str) -> None:
    """A device whose key is in a TPM does not become another one because a line of its settings went."""
    with contextlib.suppress(SettingsError):
        if len(device_public(state)) == cose.P256_SIZE:
            raise IdentityUnusable(f'{identity.published(state)} names a key in the TPM: [identity] kind = "tpm2"')


def _publish(directory: str, public: bytes) -> None:
    path = os.path.join(directory, "device.pub")
    if _is_published(path, public):
        return
    with durable.alone(directory):
        if not _is_published(path, public):
            durable.write(path, public.hex().encode() + b"\n", 0o644)


def _is_published(path: str, public: bytes) -> bool:
    try:
        return _public(path) == public
    except SettingsError:
        return False  # absent or damaged: to be written anew
