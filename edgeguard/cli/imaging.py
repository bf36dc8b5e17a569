"""What `baseline build` and `scan --root` share: the root directory of an image, and the policy for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from typing import Any

from edgeguard.cli.console import Console
from edgeguard.cli.text import escape
from edgeguard.errors import ControlError

VENDOR, SITE = "/usr/lib/edgeguard/policy.d", "/etc/edgeguard/policy.d"
NOTES_SHOWN = 10  # lines; a root that was unpacked without rights gives one a file


def root_of(path: str) -> str:
    """The root directory of an image, without symlinks in its own path. Never this machine's."""
    root = os.path.realpath(path)
    if not os.path.isdir(root):
        raise ControlError("InvalidParameter", f"{path}: not a directory")
    if root == "/" or os.path.samefile(root, "/"):
        raise ControlError("InvalidParameter", "this is the system that runs here; it is checked by `edgeguard scan`")
    return root


def policy_of(root: str, places: Sequence[str], now: int) -> Any:
    """The policy in files and directories of *.toml, a later one masking an earlier one of the same name; without any,
    the image's own. Raises PolicyError."""
    from edgeguard import codes
    from edgeguard.baseline.policy import parse
    from edgeguard.baseline.store import POLICY_FILES_MAX, policy_file
    from edgeguard.cli.policy import known_codes, known_kinds

    paths = _named(places) if places else _own(root)
    if not paths:
        where = " or ".join(places) if places else f"{VENDOR} or {SITE} of the image; give it with --policy"
        raise ControlError("NoPolicy", f"there is no policy in {where}")
    if len(paths) > POLICY_FILES_MAX:
        raise ControlError("TooMany", f"{len(paths)} policy files, at most {POLICY_FILES_MAX}")
    files = [(paths[name][1], policy_file(paths[name][0])) for name in sorted(paths)]
    policy = parse([(path, data) for path, data in files if data.strip()], known_codes(), known_kinds(), now=now)
    table = codes.load()
    return policy._replace(rules=tuple(rule._replace(fix=rule.fix or table[rule.code].fix) for rule in policy.rules))


def _named(places: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name -> (where to read it, what to call it)."""
    found: dict[str, tuple[str, str]] = {}
    for place in places:
        names = sorted(os.listdir(place)) if os.path.isdir(place) else [""]
        for name in names:
            path = os.path.join(place, name) if name else place
            if not name or (name.endswith(".toml") and not name.startswith(".")):
                found[os.path.basename(path)] = (path, path)
    return found


def _own(root: str) -> dict[str, tuple[str, str]]:
    """The image's own files. Its symlinks lead nowhere but into it, whatever they name."""
    from edgeguard.linux.inside import inside

    found: dict[str, tuple[str, str]] = {}
    for place in (VENDOR, SITE):
        folder = inside(root, place)
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if not name.endswith(".toml") or name.startswith("."):
                continue
            full = f"{folder}/{name}"
            if os.path.islink(full) and os.readlink(full) == os.devnull:
                found[name] = (os.devnull, "")
            else:
                found[name] = (inside(root, f"{place}/{name}"), f"{place}/{name}")
    return {name: pair for name, pair in found.items() if pair[0] != os.devnull}


def tell(console: Console, lines: Iterable[str]) -> None:
    """Remarks, not more of them than a screen takes."""
    told = list(lines)
    for line in told[:NOTES_SHOWN]:
        console.remark(f"edgeguard: {escape(line)}")
    if len(told) > NOTES_SHOWN:
        console.remark(f"edgeguard: and {len(told) - NOTES_SHOWN} more")


def not_there() -> str:
    from edgeguard.sensors.offline import NOT_IN_AN_IMAGE

    return ", ".join(NOT_IN_AN_IMAGE.values())


def read(path: str, limit: int) -> bytes:
    """A regular file of bounded size; a FIFO must not hold us."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ControlError("NotAFile", f"{path}: not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ControlError("TooLong", f"{path}: larger than {limit} bytes")
    return data
