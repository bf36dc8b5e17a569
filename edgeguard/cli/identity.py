"""`edgeguard identity [show | create]`: who this device is, where its identity key lies, and whether that signs.

`create` makes a key in the TPM that the settings name. Without the daemon; needs root. A device that has an identity
already keeps it: with another key it would be another device, and nothing that it signed before would be its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError, DecodeError, EdgeGuardError, IdentityUnusable, SettingsError, Unavailable

if TYPE_CHECKING:
    from edgeguard.settings import Settings

PROBE = b"edgeguard identity"  # signed to see that it signs; no statement of anything


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (none: show)")
    actions.add_parser("show", help="say who this device is, where its key lies, and whether it signs")
    create = actions.add_parser("create", help='make the key in the TPM ([identity] kind = "tpm2" in agent.toml)')
    adopt = "take the key that is at the handle already, if this TPM made it and it cannot leave"
    create.add_argument("--adopt", action="store_true", help=adopt)


def run(given: argparse.Namespace, console: Console) -> int:
    if given.action == "create":
        _create(console.settings, adopt=given.adopt)
    return _show(console.settings, console)


def _show(settings: Settings, console: Console) -> int:
    """0: it signs, 1: it does not."""
    from edgeguard import identity
    from edgeguard.codec import cose

    facts: dict[str, Any] = {"v": 1, "kind": settings.identity.kind, "device": None, "public": None, "error": None}
    try:
        signer = identity.load(settings)
        facts |= {"device": cose.device_id(signer.public).hex(), "public": signer.public.hex()}
        cose.verify1(signer.sign1(PROBE, cose.PROBE_AAD), [signer.public], cose.PROBE_AAD)
    except FileNotFoundError:
        facts["error"] = "there is none yet: the daemon makes it at its first start"
    except (OSError, EdgeGuardError) as error:
        denied = error if isinstance(error, PermissionError) else error.__cause__
        if isinstance(denied, PermissionError):
            raise denied from error  # said as ever
        facts["error"] = str(error)
    if console.form != "text":
        console.json(facts)
    else:
        console.text(f"Device    {facts['device'] or 'unknown'}")
        console.text(f"Key       {settings.identity.where()}")
        console.text(f"Public    {facts['public'] or 'unknown'}")
        console.text(f"Signs     {'no: ' + escape(str(facts['error'])) if facts['error'] else 'yes'}")
    return 1 if facts["error"] else 0


def _create(settings: Settings, *, adopt: bool) -> None:
    from edgeguard import identity
    from edgeguard.baseline import keys
    from edgeguard.codec import cose
    from edgeguard.linux import durable

    if settings.identity.kind != "tpm2":
        raise ControlError("InvalidParameter", 'only a key in a TPM is made so: [identity] kind = "tpm2" in agent.toml')
    path = identity.published(settings.paths.state)
    try:
        known = keys.device_public(settings.paths.state)
    except SettingsError:
        if os.path.lexists(path):
            raise
        known = b""
    directory = os.path.dirname(path)
    if len(known) == cose.PUBLIC_SIZE or os.path.lexists(os.path.join(directory, "device.key")):
        raise IdentityUnusable(f"this device has an identity, in {directory}: docs/keys.md says how to give it another")
    with _owner_of(settings.paths.state):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(f"{directory}/tpm.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    public = _key(settings, adopt=adopt or bool(known))
    if known not in {b"", public}:
        raise IdentityUnusable(f"{path} names another key than the one at {settings.identity.handle}")
    identity.InTpm(settings, public).sign1(PROBE, cose.PROBE_AAD)  # one that cannot sign is not made an identity
    with _owner_of(settings.paths.state):
        durable.write(path, public.hex().encode() + b"\n", 0o644)


def _key(settings: Settings, *, adopt: bool) -> bytes:
    """The public key at the handle; made now where there is none. Raises IdentityUnusable."""
    from edgeguard import identity
    from edgeguard.codec import tpm

    handle, device = settings.identity.handle, identity.tpm_of(settings)
    try:
        if not adopt:
            device.create(handle)
        found = tpm.public(device.public(handle))
    except (Unavailable, DecodeError) as error:
        more = "; --adopt takes the key that is there" if "at that handle already" in str(error) else ""
        raise IdentityUnusable(f"{handle}: {error}{more}") from error
    if objection := found.objection():
        raise IdentityUnusable(f"{handle}: a key that {objection} is no identity")
    return found.key


@contextlib.contextmanager
def _owner_of(state: str) -> Iterator[None]:
    """With the rights of the daemon's user, to whom the state directory belongs: what root writes there, he could lead
    elsewhere by a symlink."""
    if os.geteuid() != 0:
        yield
        return
    owner, group = os.stat(state), os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
