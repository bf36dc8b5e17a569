"""The device's identity key, wherever the settings say it is: what signs with it, and in whose name.

file        keys/device.key in the state directory; the daemon makes it at its first start
credential  the same 32 bytes, handed over by systemd. Nothing is made or looked for elsewhere where it is missing: a
            device that silently became another one would be worse than one that says why it does not seal
tpm2        a P-256 key that cannot leave the TPM; keys/device.pub says which key is meant, so that the TPM is asked for
            signatures only, and one that was exchanged or cleared is noticed

Who is only asked whose device this is needs no TPM: `load` does not talk to it. Used by short-lived processes alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeguard.codec import cose, tpm
from edgeguard.errors import DecodeError, IdentityUnusable, SignatureMismatch, Unavailable
from edgeguard.settings import Settings

if TYPE_CHECKING:
    from edgeguard.linux.tpm2 import Tpm

CREDENTIAL = "edgeguard-identity"
UNIT_CREDENTIALS = "/run/credentials/edgeguard.service"  # where root finds it that systemd did not start
CREATE = "sudo edgeguard identity create"


def load(settings: Settings) -> cose.Signer:
    """What signs as this device.

    FileNotFoundError: kind is "file" and there is none yet. DecodeError: what is there is no key. IdentityUnusable:
    something else is in the way. For tpm2, `sign1` raises IdentityUnusable as long as the TPM does not sign.
    """
    kind, state = settings.identity.kind, settings.paths.state
    if kind == "tpm2":
        return _in_tpm(settings)
    if kind == "file":
        return cose.Signer(cose.load_seed(seed_files(state)))
    path = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "") or UNIT_CREDENTIALS, CREDENTIAL)
    try:
        return cose.Signer(cose.load_seed([path]))
    except OSError as error:
        raise IdentityUnusable(
            f"the credential {CREDENTIAL} is not there ({path}: {error.strerror or 'no such file'})"
        ) from error


def seed_files(state: str) -> list[str]:
    """Where a private key may lie, in the order in which they count; the last is the file that is made."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    handed = [os.path.join(credentials, CREDENTIAL)] if credentials else []
    return [*handed, os.path.join(state, "keys", "device.key")]


def published(state: str) -> str:
    """Where the public key lies."""
    return os.path.join(state, "keys", "device.pub")


def tpm_of(settings: Settings) -> Tpm:
    """The TPM of the settings."""
    from edgeguard.linux.tpm2 import Tpm  # with it come subprocess and tempfile, for the few who have a TPM

    return Tpm(settings.identity.tcti, os.path.join(settings.paths.state, "keys", "tpm.lock"))


def _in_tpm(settings: Settings) -> cose.Signer:
    path = published(settings.paths.state)
    try:
        public = cose.load_public(path)
    except FileNotFoundError as error:
        raise IdentityUnusable(f"no key was made in the TPM yet: {CREATE}") from error
    except (OSError, DecodeError) as error:
        raise IdentityUnusable(f"{path}: {error}") from error
    if len(public) != cose.P256_SIZE:
        raise IdentityUnusable(f"{path} is that of a key in a file; a key in the TPM is another device: docs/keys.md")
    return InTpm(settings, public)


class InTpm(cose.Elsewhere):
    """The identity key, in the TPM."""

    def __init__(self, settings: Settings, public: bytes) -> None:
        super().__init__(public, self._ask)
        self._settings = settings
        self._refused: IdentityUnusable | None = None  # a TPM that hangs is asked once by a process

    def sign1(self, payload: bytes, aad: bytes) -> bytes:
        """Raises IdentityUnusable."""
        if self._refused is not None:
            raise self._refused
        try:
            return super().sign1(payload, aad)
        except (Unavailable, DecodeError) as error:
            self._refused = IdentityUnusable(f"the identity key in the TPM: {error}")
            raise self._refused from error
        except SignatureMismatch as error:
            words = "signs with another key than this device's: was the TPM cleared or exchanged?"
            self._refused = IdentityUnusable(f"{self._settings.identity.where()}: it {words}")
            raise self._refused from error

    def _ask(self, digest: bytes) -> bytes:
        return tpm.signature(tpm_of(self._settings).sign(self._settings.identity.handle, digest))
