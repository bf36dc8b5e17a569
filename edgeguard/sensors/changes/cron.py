"""crontabs, the system's and those of users: which jobs came, went, or run at other times. Pure.

As cron reads them (crontab(5)): NAME=value lines, and jobs with five fields of time or one @word; the system's tables
have the user before the command. The order of jobs does not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.sensors.changes.secrets import line, value_of

_SETTING = re.compile(r"[ \t]*[\"']?([A-Za-z_]\w{0,127})[\"']?[ \t]*=[ \t]*(.*)\Z")
_TIMES = 5  # fields: minute, hour, day of month, month, day of week


class _Job(NamedTuple):
    when: str
    user: str  # "" in a table that belongs to one user
    command: str  # "" for a line that cron does not understand, which is in `when` then

    def __str__(self) -> str:
        return " ".join(part for part in (self.when, self.user, self.command) if part)


def system(old: str, new: str) -> Iterator[str]:
    """/etc/crontab and /etc/cron.d."""
    return _tell(old, new, named=True)


def personal(old: str, new: str) -> Iterator[str]:
    """A user's own table."""
    return _tell(old, new, named=False)


def _tell(old: str, new: str, *, named: bool) -> Iterator[str]:
    settings_before, before = _parsed(old, named)
    settings_after, after = _parsed(new, named)
    for name in sorted(settings_before | settings_after):
        was, now = settings_before.get(name), settings_after.get(name)
        if was != now:
            yield _setting(name, was, now)
    gone, came = before - after, after - before
    moved: dict[tuple[str, str], list[_Job]] = {}
    for job in gone.elements():
        if job.command:
            moved.setdefault((job.user, job.command), []).append(job)
    for job in came.elements():
        others = moved.get((job.user, job.command))
        if job.command and others:
            other = others.pop()
            gone[other] -= 1
            what = line(" ".join(part for part in (job.user, job.command) if part))
            yield f"job runs at other times: {other.when} → {job.when}: {what}"
        else:
            yield f"{_noun(job)} added: {line(str(job))}"
    for job in gone.elements():
        yield f"{_noun(job)} removed: {line(str(job))}"


def _noun(job: _Job) -> str:
    return "job" if job.command else "line that is no job"


def _setting(name: str, was: str | None, now: str | None) -> str:
    if now is None:
        return f"{name} no longer set"
    if was is None:
        return f"{name} set: {value_of(name, now)}"
    return f"{name}: {value_of(name, was)} → {value_of(name, now)}"


def _parsed(text: str, named: bool) -> tuple[dict[str, str], Counter[_Job]]:
    settings: dict[str, str] = {}
    jobs: Counter[_Job] = Counter()
    for raw in text.split("\n"):
        stripped = raw.strip()
        if not stripped or stripped.startswith("#"):
            continue
        setting = _SETTING.match(raw)
        if setting:
            settings[setting[1]] = setting[2].strip()
        else:
            jobs[_job(stripped, named)] += 1
    return settings, jobs


def _job(text: str, named: bool) -> _Job:
    times = 1 if text.startswith("@") else _TIMES
    fields = text.split(None, times + named)
    if len(fields) <= times + named:
        return _Job(text, "", "")
    return _Job(" ".join(fields[:times]), fields[times] if named else "", fields[-1])
