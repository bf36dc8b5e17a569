"""Kind `sshd`: what sshd would do with the configuration on disk. Part of the sensor `host`.

`sshd -T` would say the same, but it wants to read the private host keys. Read here: /etc/ssh/sshd_config and what it
includes, as sshd reads them at its next start. Not seen: options on sshd's command line, and a running sshd that has
not been reloaded since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgeguard.model import Columns, Observation, Origin, Status
from edgeguard.sensors import Column, parse_sshd, reading
from edgeguard.sensors.snapshot import WHOLE_KIND

CONFIG = "/etc/ssh/sshd_config"
TRIGGERS = ("/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*")
FILE_MAX = 256 * 1024  # bytes of one file; Debian's has 3 KiB
FILES_MAX = 256  # included files in all
DEPTH_MAX = 16  # Includes within Includes; servconf.c has the same bound

KIND: Mapping[str, Column] = {
    "value": Column("str", "the value in force, lists joined with spaces", reference=True),
    "level": Column(
        "int", "how strong it is: higher is stronger, -1 not known, 0 where there is no order", reference=True
    ),
    "match": Column("str", "criteria of the Match block that it holds in, empty for everybody"),
    "keyword": Column("str", "the keyword in lower case"),
}


def observe(root: str, now: int) -> Iterator[Observation]:
    """Every setting; nothing where there is no sshd."""
    try:
        lines = _lines(root)
    except FileNotFoundError:
        return
    except OSError as error:
        note = reading.why(error)
        yield Observation("sshd", WHOLE_KIND, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)
        return
    for keyword, value, level, match in parse_sshd.settings(lines):
        subject = f"{keyword} match {match}" if match else keyword
        columns: Columns = {"value": value, "level": level, "match": match, "keyword": keyword}
        yield Observation("sshd", subject, columns, now, Status.PRESENT, Origin.SWEEP)


def key_files(root: str) -> tuple[str, ...]:
    """The patterns of AuthorizedKeysFile that hold for anybody, tokens not replaced."""
    try:
        found = [setting for setting in parse_sshd.settings(_lines(root)) if setting.keyword == "authorizedkeysfile"]
    except OSError:
        return tuple(parse_sshd.KEYWORDS["authorizedkeysfile"].default.split())
    patterns = [pattern for setting in found for pattern in setting.value.split() if pattern != "none"]
    return tuple(dict.fromkeys(patterns))


def _lines(root: str) -> list[tuple[str, ...]]:
    budget = [FILES_MAX]
    return list(_expand(root, CONFIG, "", 0, budget))


def _expand(root: str, path: str, match: str, depth: int, budget: list[int]) -> Iterator[tuple[str, ...]]:
    """The words of every line, Includes replaced; a Match block in an included file ends with that file."""
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_MAX:
        return
    for line in reading.read(reading.under(root, path), FILE_MAX).split(b"\n"):
        found = parse_sshd.words(line)
        if not found:
            continue
        if found[0] == "match":
            match = " ".join(found[1:])
        if found[0] != "include":
            yield found
            continue
        for pattern in found[1:]:
            for included in _matching(root, pattern):
                try:
                    yield from _expand(root, included, match, depth + 1, budget)
                except OSError:
                    continue  # sshd too passes over what it cannot open
                yield ("match", match) if match else ("match",)


def _matching(root: str, pattern: str) -> list[str]:
    """Files for an Include pattern, in sshd's order; relative ones lie in /etc/ssh."""
    absolute = pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}"
    return reading.matching(root, absolute, FILES_MAX)
