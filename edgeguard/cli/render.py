"""The status screen: a status document in, text that fits the terminal out. Pure; the daemon calls it for the CLI.

First line the verdict, last line the one next command; warnings just above it. Never wider than the terminal, and
with the usual 24 rows never longer. The other screens are in `pages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edgeguard.cli.text import cut, cut_middle, pad, width, wrap
from edgeguard.cli.words import Document, age, ago, ascii_only, count, day, paint, phrase, port, safe, size, state, when

ID_MAX = 12  # columns; ours have 6, more only after collisions
NARROW = 60  # columns; below, the layout for a phone


def status(document: Document, columns: int = 80, color: bool = False, unicode: bool = False, height: int = 24) -> str:
    """How is this device? `document` has the keys of /run/edgeguard/status.json."""
    document = safe(document)
    if not unicode:
        document = ascii_only(document)
    if document.get("verdict") == "LEARNING":
        lines = _learning(document, columns, color)
    elif columns < NARROW:
        lines = _narrow(document, columns, color)
    else:
        lines = _wide(document, columns, color, height)
    return "\n".join(lines) + "\n"


def unknown(
    reason: str,
    last: Document | None,
    service: str,
    words: str,
    now: int,
    columns: int = 80,
    color: bool = False,
    unicode: bool = False,
) -> str:
    """The daemon does not answer. Says what was last known, what systemd says, and that nobody is watching."""
    last, reason, service, words = safe(last), safe(reason), safe(service), safe(words)
    if not unicode:
        last, reason, service, words = ascii_only(last), ascii_only(reason), ascii_only(service), ascii_only(words)
    name = f" {last['name']}" if last and last.get("name") else ""
    lines = [_verdict_line("UNKNOWN", f"{name}: {reason}".lstrip(":"), "", columns, color), ""]
    rows = []
    if last is None:
        rows.append(("Last known", "nothing: /run/edgeguard/status.json is not there"))
    else:
        told = f"{last.get('verdict', '?')}, {ago(_int(last.get('at')), now)}"
        rows.append(("Last known", told + (f", {count(last['open'], 'open finding')}" if last.get("open") else "")))
    if service:
        rows.append(("Service", service))
    if words:
        rows.append(("Last words", words))
    for label, text in rows:
        for number, line in enumerate(wrap(text, max(10, columns - 15))):
            lines.append(f"  {label if number == 0 else '':<12} {line}")
    lines += ["", *wrap("This device is not being watched now.", columns)]
    lines.append(cut(f"Next: {_remedy(service)}", columns))
    return "\n".join(lines) + "\n"


def _remedy(service: str) -> str:
    if "inactive" in service:
        return "sudo systemctl start edgeguard"
    if "not-found" in service or "not installed" in service:
        return "sudo apt install edgeguard"
    return "journalctl -u edgeguard -n 20" if service else "edgeguard doctor"


# -- the wide screen


def _wide(document: Document, columns: int, color: bool, height: int) -> list[str]:
    now = _int(document.get("at")) or 0
    found = _findings(document)
    total = _int(document.get("open")) or len(found)
    problems = _problems(document)
    middle = count(total, "open finding") if total else ""
    verdict = str(document.get("verdict", "UNKNOWN"))
    right = f"checked {ago(_int(document.get('checked')), now)}" if document.get("checked") else "not checked yet"
    fleet = f" (fleet: {document['fleet']})" if document.get("fleet") else " (not enrolled)"
    head = [_head(verdict, f"{document.get('name', '')}{fleet}", middle, right, columns, color), ""]
    areas = [_area_line(row, columns, color) for row in _areas(document, now)]
    about = _about(document, now, columns)
    tail = [*_warnings(problems, columns), _next_line(document, columns)]
    # What must be there first; then as many findings as fit; then what is known anyway.
    room = height - 1 - len(head) - len(areas) - len(tail) - 1
    block = _finding_block(found, total, now, columns, color, room - 2)
    room -= len(block) + (1 if block else 0)
    lines = [*head, *areas, ""]
    if block:
        lines += [*block, ""]
    if room >= len(about) + 1 or not block:
        lines += [*about, ""]
    return lines + tail


def _head(verdict: str, name: str, middle: str, right: str, columns: int, color: bool) -> str:
    room = columns - max(len(verdict), 4) - 1 - width(right) - 2
    if middle:
        room -= len(middle) + 2
    left = cut(name, max(8, room))
    if middle:
        gap = columns - max(len(verdict), 4) - 1 - width(left) - width(right)
        before = max(2, (gap - len(middle)) // 2)
        left = left + " " * before + middle
    return _verdict_line(verdict, left, right, columns, color)


def _verdict_line(verdict: str, left: str, right: str, columns: int, color: bool) -> str:
    word = paint(verdict, color, reverse=True)
    space = " " * max(1, 5 - len(verdict))
    room = columns - len(verdict) - len(space)
    if not right:
        return word + space + cut(left.strip(), room)
    body = cut(left, max(0, room - width(right) - 1))
    fill = " " * (room - width(body) - width(right))
    return word + space + body + fill + right


class _Area(NamedTuple):
    label: str
    state: str
    sentence: str
    right: str  # a remark at the right


def _areas(document: Document, now: int) -> list[_Area]:
    areas = document.get("areas")
    table = areas if isinstance(areas, Mapping) else {}
    rows = []
    for key, label, describe in _DESCRIBERS:
        area = table.get(key)
        if isinstance(area, Mapping):
            sentence, right = describe(area, now)
            rows.append(_Area(label, str(area.get("state", "UNKNOWN")), sentence, right))
    return rows


def _area_line(row: _Area, columns: int, color: bool) -> str:
    label, word, sentence, right = row
    start = f"  {label:<12} "
    painted = paint(word, color) + " " * (7 - len(word))
    room = columns - len(start) - max(7, len(word))
    if right and width(sentence) + width(right) + 2 <= room:
        column = max(width(sentence) + 2, min(38, room - width(right)))
        sentence = pad(sentence, column) + right
    return f"{start}{painted}{cut(sentence, room)}".rstrip()


def _files(area: Document, now: int) -> tuple[str, str]:
    differ, watched = _int(area.get("differ")) or 0, area.get("watched")
    right = f"full check {ago(_int(area['checked']), now)}" if area.get("checked") else ""
    if differ and isinstance(watched, int) and differ <= watched:
        return f"{differ:,} of {watched:,} {'differs' if differ == 1 else 'differ'}", right
    return f"{_number(watched)} watched, {differ:,} {'differs' if differ == 1 else 'differ'}", right


def _ports(area: Document, _now: int) -> tuple[str, str]:
    bad = _int(area.get("unexpected")) or 0
    return f"{_number(area.get('listening'))} listening, " + (f"{bad:,} not expected" if bad else "all expected"), ""


def _processes(area: Document, _now: int) -> tuple[str, str]:
    return f"{_number(area.get('running'))} running, {_number(area.get('unusual'))} unusual", ""


def _usb(area: Document, _now: int) -> tuple[str, str]:
    bad = _int(area.get("unknown")) or 0
    devices = count(area.get("devices"), "device")
    return (f"{devices}, {bad:,} unknown" if bad else f"{devices}, all known"), ""


def _hardening(area: Document, _now: int) -> tuple[str, str]:
    waived = _int(area.get("waived")) or 0
    tail = f", {waived} waived" if waived else ""
    return f"{_number(area.get('met'))} of {_number(area.get('rules'))} rules met{tail}", ""


def _packages(area: Document, now: int) -> tuple[str, str]:
    bad = _int(area.get("incomplete")) or 0
    tail = f", {bad:,} not complete" if bad else ""
    right = f"changed {ago(_int(area['changed']), now)}" if area.get("changed") else ""
    return f"{_number(area.get('installed'))} installed{tail}", right


def _log(area: Document, _now: int) -> tuple[str, str]:
    if area.get("error"):
        return str(area["error"]), ""
    if area.get("fleeting"):
        return f"seq {_number(area.get('sequence'))}, {area['fleeting']}", ""
    since = f" since {day(area['since'])}" if isinstance(area.get("since"), int) else ""
    lost = area.get("let_go")
    told = ", ".join(f"{_number(number)} {name}" for name, number in lost.items()) if isinstance(lost, Mapping) else ""
    gone = f", let go: {told}" if told else ""
    return f"seq {_number(area.get('sequence'))} unbroken{since}{gone}", _room(area)


def _room(area: Document) -> str:
    """What sealed records take of their room, and what writing them cost."""
    limit = _int(area.get("limit"))
    room = f"{size(area.get('bytes'))} of {size(limit)}" if limit else ""
    written = f"{size(area.get('written'))} written" if _int(area.get("written")) else ""
    return ", ".join(part for part in (room, written) if part)


def _uplink(area: Document, now: int) -> tuple[str, str]:
    waiting = f"{_number(area.get('waiting'))} waiting"
    if area.get("state") == "OFF":
        return f"not set up; records stay here, {waiting}", ""
    if area.get("error"):
        return f"{area['error']}, {waiting}", ""
    sent = _int(area.get("last_sent"))
    by = " by MQTT" if area.get("transport") == "mqtt" else ""
    return (f"last sent {ago(sent, now)}{by}" if sent else f"nothing sent yet{by}") + f", {waiting}", ""


def _clock(area: Document, _now: int) -> tuple[str, str]:
    if area.get("synchronised") is None:
        return "cannot tell whether it is right", ""
    return "synchronised" if area["synchronised"] else "not synchronised: times may be wrong", ""


_DESCRIBERS: tuple[tuple[str, str, Any], ...] = (
    ("files", "Files", _files),
    ("ports", "Ports", _ports),
    ("processes", "Processes", _processes),
    ("usb", "USB", _usb),
    ("hardening", "Hardening", _hardening),
    ("packages", "Packages", _packages),
    ("log", "Log chain", _log),
    ("uplink", "Uplink", _uplink),
    ("clock", "Clock", _clock),
)


def _finding_block(found: list[Document], total: int, now: int, columns: int, color: bool, room: int) -> list[str]:
    if not found:
        return []
    shown = found[: max(1, room if total <= room else room - 1)]
    lines = ["Open findings, worst first"]
    wide = min(ID_MAX, max(len(str(finding.get("id", ""))) for finding in shown))
    for finding in shown:
        since = age(now - (when(finding.get("first_seen")) or now))
        word = state(finding)
        start = f"  {pad(str(finding.get('id', '')), wide)}  "
        rest = f"  {since:<7} "
        text = cut_middle(phrase(finding), columns - len(start) - 4 - len(rest))
        lines.append(f"{start}{paint(word, color)}{' ' * (4 - len(word))}{rest}{text}")
    if total > len(shown):
        lines.append(cut(f"  and {total - len(shown)} more: edgeguard findings", columns))
    return lines


def _about(document: Document, now: int, columns: int) -> list[str]:
    lines = []
    policy, daemon = document.get("policy"), document.get("daemon")
    if isinstance(policy, Mapping):
        signer = policy.get("signer") or "this device"
        trust = f"signed by {signer}" if policy.get("trust") == "fleet" else "trust: local (own key)"
        told = "audit (only says)" if policy.get("mode") == "audit" else str(policy.get("mode"))
        until = _int(policy.get("expires"))
        end = f", until {day(until)}" if until else ""
        lines += wrap(f"Policy  r{policy.get('revision')}, {trust}, mode: {told}{end}", columns)
    else:
        lines += wrap("Policy  no baseline is in force: nothing can be compared", columns)
    if isinstance(daemon, Mapping):
        up = age(now - (_int(daemon.get("started")) or now))
        cpu = daemon.get("cpu_percent")
        used = f", {cpu:.1f} % CPU" if isinstance(cpu, (int, float)) else ""
        lines += wrap(f"Daemon  {daemon.get('version')}, up {up}, {size(daemon.get('rss'))}{used}", columns)
    return lines


def _problems(document: Document) -> list[str]:
    problems = [str(problem) for problem in document.get("problems") or []]
    if (
        document.get("clock_synchronised") is False
        and document.get("areas", {}).get("clock", {}).get("state") == "WARN"
    ):
        problems.append("the clock is not synchronised: times on this screen may be wrong")
    return problems


def _warnings(problems: list[str], columns: int) -> list[str]:
    lines: list[str] = []
    for problem in problems[:3]:
        first, *more = wrap(problem, max(10, columns - 3))
        lines += [f"! {first}", *(f"  {line}" for line in more[:1])]
    if len(problems) > 3:
        lines.append(cut(f"! and {len(problems) - 3} more: edgeguard doctor", columns))
    return [*lines, ""] if lines else []


def _next_line(document: Document, columns: int) -> str:
    step = document.get("next")
    if not step and document.get("verdict") == "UNKNOWN":
        step = "edgeguard doctor" if document.get("policy") else "sudo edgeguard baseline learn"
    return cut(f"Next: {step}", columns) if step else "Nothing to do."


# -- learning


def _learning(document: Document, columns: int, color: bool) -> list[str]:
    learning = document.get("learning")
    progress: Document = learning if isinstance(learning, Mapping) else {}
    left = _int(progress.get("eta_s"))
    eta = f", about {age(left * 1000)} left" if left is not None else ""
    told = f"{progress.get('percent', 0)} %{eta}"
    where = f"{document.get('name', '')}: {told}"
    lines = [_verdict_line("LEARNING", where, "", columns, color), ""]
    text = (
        f"{count(progress.get('files'), 'file')} read so far, {size(progress.get('bytes'))}. "
        "EdgeGuard is taking down how this device looks now; what it finds becomes the baseline. "
        "Until then nothing is compared, so learn only on a device that you trust."
    )
    lines += wrap(text, columns)
    lines += ["", *_warnings(_problems(document), columns)]
    lines.append(cut("Next: edgeguard status (again, in a while)", columns))
    return lines


# -- the narrow screen


def _narrow(document: Document, columns: int, color: bool) -> list[str]:
    now = _int(document.get("at")) or 0
    found = _findings(document)
    total = _int(document.get("open")) or len(found)
    verdict = str(document.get("verdict", "UNKNOWN"))
    fleet = f" ({document['fleet']})" if document.get("fleet") else " (not enrolled)"
    opened = f"{count(total, 'open finding')}, " if total else ""
    checked = f"checked {ago(_int(document.get('checked')), now)}" if document.get("checked") else "not checked yet"
    lines = [_verdict_line(verdict, f"{document.get('name', '')}{fleet}", "", columns, color)]
    lines += [cut(opened + checked, columns), ""]
    for label, word, sentence, _ in _areas(document, now):
        painted = paint(word, color)
        if word in {"OK", "OFF", "LEARNING"}:
            lines.append(cut(f"{label:<9} ", 10) + painted)
            continue
        room = columns - 10 - len(word) - 1
        short = sentence.partition(", ")[2] or sentence if label != "Uplink" else sentence
        lines.append(f"{label:<9} {painted} {cut(short, room)}")
    lines.append("")
    for finding in found[:5]:
        word = state(finding)
        since = age(now - (when(finding.get("first_seen")) or now))
        lines.append(f"{cut(str(finding.get('id', '')), 8)} {paint(word, color)} {since}")
        lines.append(" " + cut_middle(_short(finding), columns - 1))
    if total > len(found[:5]):
        lines.append(cut(f"and {total - len(found[:5])} more: edgeguard findings", columns))
    if found:
        lines.append("")
    return [*lines, *_warnings(_problems(document), columns), _next_line(document, columns)]


def _short(finding: Document) -> str:
    if finding.get("kind") == "listener":
        exe = (finding.get("observed") or {}).get("exe") or (finding.get("details") or {}).get("exe")
        return f"port {port(str(finding.get('subject', '')))}" + (f", {exe}" if exe else "")
    return phrase(finding)


# -- small parts


def _findings(document: Document) -> list[Document]:
    found = document.get("findings")
    return [finding for finding in found if isinstance(finding, Mapping)] if isinstance(found, list) else []


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"
