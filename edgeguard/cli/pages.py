"""All screens but status: findings, explain, why, log, doctor, progress. Documents in, text out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from edgeguard.cli.text import cut, cut_middle, pad, width, wrap
from edgeguard.cli.words import Document, actor_words, age, ago, count, headline, paint, phrase, size, state, when

ID_MAX = 12  # columns; ours have 6, more only after collisions
LABEL = 9  # columns of the labels in explain and why
DIFF_LINES, SENTENCES = 7, 3  # of a change in explain, which has more to say; why shows all of it
COMPARED = ("diff", "changes")  # columns that have a place of their own


class CodeText(Protocol):
    """edgeguard.codes.Code: what is always true of a kind of finding."""

    @property
    def title(self) -> str: ...
    @property
    def rationale(self) -> str: ...
    @property
    def fix(self) -> Any: ...
    @property
    def references(self) -> Any: ...
    @property
    def attack(self) -> Any: ...


# -- findings


def findings(found: Sequence[Document], tail: Document, now: int, columns: int, color: bool, everything: bool) -> str:
    """The table, worst first, and how many there are."""
    lines = []
    if found:
        wide = min(ID_MAX, max(6, *(width(str(finding.get("id", ""))) for finding in found)))
        by = 0 if columns < 60 else min(24, max(2, *(width(actor_words(finding)) for finding in found)))
        what = columns - wide - 2 - 5 - 1 - 8 - (by + 2 if by else 0)
        lines.append(f"{'ID':<{wide}}  STATE AGE     {'WHAT':<{what}}{'  BY' if by else ''}".rstrip())
        for finding in found:
            word = cut(state(finding), 5)
            since = age(now - (when(finding.get("first_seen")) or now))
            said = headline(finding)
            text = pad(cut_middle(said, what) if said == phrase(finding) else cut(said, what), what)
            who = f"  {cut(actor_words(finding), by)}" if by else ""
            painted = paint(word, color) + " " * (5 - len(word))
            lines.append(f"{pad(str(finding.get('id', '')), wide)}  {painted} {since:<7} {text}{who}".rstrip())
    numbers = f"{tail.get('open', 0)} open, {tail.get('suppressed', 0)} accepted or waived"
    numbers += f", {tail.get('resolved', 0)} closed." if everything else ".  `--all` shows closed ones too."
    lines += wrap(numbers, columns)
    overflow = tail.get("overflow")
    if isinstance(overflow, Mapping) and overflow:
        told = ", ".join(f"{number} of {code}" for code, number in sorted(overflow.items()))
        lines += wrap(f"Not listed, because there are too many: {told}.", columns)
    return "\n".join(lines) + "\n"


# -- explain


def explain(answer: Document, code: CodeText | None, now: int, columns: int, color: bool) -> str:
    """What it means, who did it, how bad it is, how to fix it, how to accept it."""
    finding: Document = answer["finding"]
    title = code.title if code else str(finding.get("title", ""))
    word = state(finding)
    head = wrap(title, max(20, columns - 14))
    lines = [f"{finding.get('id', ''):<7} {paint(word, color)}{' ' * (6 - len(word))}{head[0]}"]
    lines += [" " * 14 + line for line in head[1:]]
    lines += [" " * 14 + line for line in wrap(_history(finding, now), max(20, columns - 14))]
    lines.append("")
    lines += _labelled("What", [phrase(finding), *_differences(finding)], columns)
    lines += _change(finding.get("details"), columns, color, whole=False)
    if finding.get("note"):
        lines += _labelled("Note", [str(finding["note"])], columns)
    lines += _labelled("Who", [_who(finding)], columns)
    near = [item for item in answer.get("near") or [] if isinstance(item, Mapping)]
    if near:
        lines += _labelled("Near", [_near(item, finding) for item in near[:3]], columns)
    if finding.get("waiver"):
        lines += _labelled("Accepted", [str(finding["waiver"])], columns)
    if finding.get("remediation"):
        lines += _labelled("Done", [str(finding["remediation"])], columns)
    if code and code.rationale:
        lines += _labelled("Why bad", [code.rationale], columns)
    rule = answer.get("rule")
    if isinstance(rule, Mapping):
        lines += _labelled("Rule", [f"{rule.get('id')} in {rule.get('source') or 'the baseline'}"], columns)
    if finding.get("state") == "open":
        lines += ["", *_advice(finding, code, columns)]
    return "\n".join(lines) + "\n"


def explain_code(name: str, code: CodeText, columns: int) -> str:
    """A kind of finding, without any finding."""
    lines = [f"{name}  {code.title}", ""]
    if code.rationale:
        lines += _labelled("Why bad", [code.rationale], columns)
    steps = _steps(code.fix)
    if steps:
        lines += _labelled("Fix", steps, columns)
    for label, value in (("See", code.references), ("ATT&CK", code.attack)):
        listed = ", ".join(value) if isinstance(value, (tuple, list)) else str(value or "")
        if listed:
            lines += _labelled(label, [listed], columns)
    return "\n".join(lines) + "\n"


def _history(finding: Document, now: int) -> str:
    first, last = when(finding.get("first_seen")), when(finding.get("last_seen"))
    text = f"{finding.get('code')}, first seen {str(finding.get('first_seen', ''))[11:19]}"
    text += f" ({ago(first, now)})" if first else ""
    if finding.get("origin") == "down":
        text += ", while EdgeGuard was not running"
    elif finding.get("origin") == "sweep":
        text += ", found by looking: it happened before that"
    if finding.get("state") == "resolved":
        text += f", over since {str(finding.get('resolved_at', ''))[11:19]}"
    elif finding.get("state") == "open":
        text += ", still so"
    times = finding.get("count")
    if isinstance(times, int) and times > 1 and last:
        text += f", seen {times} times"
    return text


_DIGESTS = ("sha256", "blake2b")  # of a content: a baseline has one of them
_DIFF_COLOURS = {"+": "32", "-": "31", "@": "36"}


def _differences(finding: Document) -> list[str]:
    expected, observed = finding.get("expected") or {}, finding.get("observed") or {}
    lines = []
    for column in observed:
        if column in _DIGESTS and _texts(finding.get("details"), "diff"):
            continue  # what changed says more
        now = _value(column, observed[column])
        if column in expected:
            lines.append(f"{column}  {_value(column, expected[column])} -> {now}")
        elif finding.get("kind") != "health":
            lines.append(f"{column}  {now}")
    return lines[:10]


def _change(row: Any, columns: int, color: bool, *, whole: bool = True) -> list[str]:
    """What changed in a file: in words, and line by line. A line that is too long is cut, never wrapped."""
    said, diff = _texts(row, "changes"), _texts(row, "diff")
    sentences, most = (len(said), len(diff)) if whole else (SENTENCES, DIFF_LINES)
    lines = _labelled("Changes", said[:sentences], columns)
    room = max(10, columns - LABEL)
    for number, text in enumerate(diff[:most]):
        shown = cut(text, room)
        if color and text[:1] in _DIFF_COLOURS:
            shown = f"\x1b[{_DIFF_COLOURS[text[:1]]}m{shown}\x1b[0m"
        lines.append(f"{'' if number else 'Diff':<{LABEL}}{shown}".rstrip())
    if len(said) > sentences or len(diff) > most:
        more = [count(len(said) - sentences, "sentence")] if len(said) > sentences else []
        more += [count(len(diff) - most, "line")] if len(diff) > most else []
        lines.append(" " * LABEL + cut(f"({' and '.join(more)} more: edgeguard why PATH)", room))
    return lines


def _texts(row: Any, column: str) -> list[str]:
    value = row.get(column) if isinstance(row, Mapping) else None
    return [str(item) for item in value] if isinstance(value, list) else []


def _value(column: str, value: Any) -> str:
    if value is None:
        return "not known"
    if column == "mode" and isinstance(value, int):
        return f"{value:04o}"
    if column == "size":
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    text = str(value)
    return text[:16] + ".." if column in {*_DIGESTS, "xattrs"} and len(text) > 20 else text or '""'


def _who(finding: Document) -> str:
    actor = finding.get("actor")
    if not isinstance(actor, Mapping):
        if finding.get("origin") == "down":
            return "not known: EdgeGuard was not running then"
        if finding.get("origin") == "sweep":
            return "not known: nobody saw it happen"
        return "not known: the kernel did not say"
    chain = [f"{actor.get('exe') or '?'} (pid {actor.get('pid')})"]
    parents = [item for item in actor.get("parents") or [] if isinstance(item, list) and len(item) == 2]
    chain += [f"{str(exe).rpartition('/')[2]} (pid {pid})" for pid, exe in parents]
    text = " <- ".join(chain[:4])
    login, user = actor.get("login_user"), actor.get("user")
    if login:
        text += f": user {login}" + (f" as {user}" if user and user != login else "")
    elif user:
        text += f": as {user}, no login session"
    if actor.get("address"):
        text += f", from {actor['address']}"
    if actor.get("tty"):
        text += f", on {actor['tty']}"
    if actor.get("unit"):
        text += f", in {actor['unit']}"
    return text


def _near(item: Document, finding: Document) -> str:
    then, here = when(item.get("first_seen")) or 0, when(finding.get("first_seen")) or 0
    gap = f"{age(abs(then - here))} {'later' if then >= here else 'earlier'}"
    return f"{phrase(item)}, {gap}  ({item.get('id')})"


def _advice(finding: Document, code: CodeText | None, columns: int) -> list[str]:
    lines = ["If you did not do this"]
    fix = str(finding.get("fix") or "")
    steps = [fix] if fix else _steps(code.fix) if code else []
    for number, step in enumerate(steps or ["leave the device on and tell whoever looks after it"], 1):
        first, *more = wrap(step, max(10, columns - 5))
        lines += [f"  {number}. {first}", *(f"     {line}" for line in more)]
    lines.append("If this was you")
    lines.append(cut(f'  sudo edgeguard accept {finding.get("id")} --reason "..."', columns))
    return lines


def _steps(fix: Any) -> list[str]:
    lines = fix if isinstance(fix, (tuple, list)) else str(fix or "").splitlines()
    return [str(line).strip() for line in lines if str(line).strip()]


def _labelled(label: str, texts: Iterable[str], columns: int) -> list[str]:
    lines: list[str] = []
    for text in texts:
        for line in wrap(text, max(10, columns - LABEL)):
            lines.append(f"{label if not lines else '':<{LABEL}}{line}")
    return lines


# -- why


def why(answer: Document, columns: int, color: bool) -> str:
    """Which rule decides about this subject, from which line of which file, and what it expects."""
    results = [item for item in answer.get("results") or [] if isinstance(item, Mapping)]
    bad = [item for item in results if item.get("outcome") != "pass"]
    known = "in the baseline" if answer.get("known") else "not in the baseline"
    if answer.get("waivers"):
        verdict, word = f"waived: {answer['waivers'][0].get('reason')}", "OK"
    elif bad:
        word = {"critical": "CRIT", "high": "WARN", "medium": "WARN"}.get(str(bad[0].get("severity")), "INFO")
        verdict = f"{bad[0].get('code')}" + (" (cannot be decided)" if bad[0].get("outcome") == "unknown" else "")
    else:
        verdict, word = ("as expected" if results else "no rule asks about it"), "OK"
    start = f"{answer.get('subject', '')}  {known}"
    lines = [
        cut_middle(start, max(20, columns - len(verdict) - len(word) - 6)) + f"  -> {paint(word, color)} {verdict}"
    ]
    if answer.get("status") != "present":
        lines.append(f"  it is {answer.get('status')} now")
    if isinstance(answer.get("watch"), Mapping):
        lines += _indented(watched(answer["watch"]), columns)
    seen = answer.get("observed") or {}
    if isinstance(seen, Mapping) and seen:
        told = ", ".join(
            f"{column} {_value(column, value)}"
            for column, value in seen.items()
            if value not in (None, "", []) and column not in COMPARED
        )
        lines += _indented("seen: " + told, columns)
        lines += ["  " + line for line in _change(seen, columns - 2, color)]
    for item in results:
        verb = {"pass": "holds", "fail": "does not hold", "unknown": "cannot be decided"}.get(
            str(item.get("outcome")), ""
        )
        lines += _indented(f"{item.get('code')} {item.get('title')}: {verb}", columns)
        asks = " and ".join(str(part) for part in item.get("expect") or [])
        where = " and ".join(str(part) for part in item.get("where") or [])
        lines += _indented(
            f"{item.get('source') or item.get('rule')}: expects {asks}" + (f" where {where}" if where else ""),
            columns,
            4,
        )
        for column, value in (item.get("observed") or {}).items():
            wanted = (item.get("expected") or {}).get(column)
            if wanted is not None and item.get("outcome") != "pass":
                lines += _indented(f"{column}: {_value(column, value)}, expected {_value(column, wanted)}", columns, 4)
    for finding in answer.get("findings") or []:
        lines += _indented(f"open: {finding.get('id')}, edgeguard explain {finding.get('id')}", columns)
    return "\n".join(lines) + "\n"


def watched(watch: Document) -> str:
    """Which line of the policy says whether a file is watched, and what is checked of it."""
    source = watch.get("source") or "the baseline"
    excluded = watch.get("excluded")
    if isinstance(excluded, Mapping):
        glob, at = excluded.get("glob"), excluded.get("at")
        return f"not watched: excluded by {source}: {glob}" + (f", which matches {at}" if at != glob else "")
    if not watch.get("watched"):
        return "not watched: no [[watch]] covers it"
    text = f"watched as {watch.get('category')} by {source}: {watch.get('path')}"
    if watch.get("only"):
        text += ", only if it runs with other rights (set-id bits, capabilities)"
    text += f"; checks {', '.join(map(str, watch.get('checks') or []))}"
    return text + ("; a copy is kept" if watch.get("protect") else "")


def _indented(text: str, columns: int, by: int = 2) -> list[str]:
    return [" " * by + line for line in wrap(text, max(10, columns - by))]


# -- log, doctor, progress, history


def log_line(record: Document, columns: int) -> str:
    """One record. The time is UTC; `*` has not been confirmed by the collector."""
    from edgeguard.cli.jsonform import iso

    at = record.get("at")
    stamp = iso(at)[:19].replace("T", " ") if isinstance(at, int) else "?"
    mark = "*" if record.get("sent") is False else " "  # None: there is no uplink
    text = f"{stamp}{mark} {record.get('type', '')!s:<10} {record.get('text', '')}"
    return cut(text, columns) if columns else text


def doctor(checks: Sequence[Document], columns: int, color: bool) -> str:
    """What is checked, how it stands, and how to put it right."""
    lines = []
    fixes = []
    for check in checks:
        word = str(check.get("level", "?"))
        first, *more = wrap(str(check.get("text", "")), max(10, columns - 22))
        lines.append(f"{paint(word, color)}{' ' * (5 - len(word))} {cut(str(check.get('name', '')), 14):<14} {first}")
        lines += [" " * 21 + line for line in more]
        if word in {"FAIL", "WARN"} and check.get("fix"):
            fixes.append(str(check["fix"]))
    failed = sum(1 for check in checks if check.get("level") == "FAIL")
    if not failed:
        lines.append("No problem.")
    else:
        lines += wrap(f"{count(failed, 'problem')}.", columns)
    for fix in fixes[:3]:
        lines += wrap(f"Fix: {fix}", columns)
    return "\n".join(lines) + "\n"


def progress(state_: Document, columns: int) -> str:
    """Files  [######.........]  44 %  5,470/12,431  1.1 GB  2 min left."""
    done, total = state_.get("done"), state_.get("total")
    name = str(state_.get("phase", "")).capitalize()
    parts = []
    if isinstance(total, int) and total > 0 and isinstance(done, int):
        share = min(1.0, done / total)
        room = 27 if columns >= 80 else max(5, columns - 50)
        bar = "#" * int(share * room)
        parts += [f"[{bar:.<{room}}]", f"{share * 100:.0f} %", f"{done:,}/{total:,}"]
    elif isinstance(done, int):
        parts.append(f"{done:,}")
    if state_.get("bytes"):
        parts.append(size(state_["bytes"]))
    if isinstance(state_.get("eta_s"), int):
        parts.append(f"{age(state_['eta_s'] * 1000)} left")
    return cut("  ".join([name, *parts]), columns - 1)


def history(revisions: Sequence[Document], now: int, columns: int) -> str:
    lines = ["REV    AGE      TRUST  MODE     FILES   SIGNED BY"]
    for item in revisions:
        at = item.get("at")
        since = age(now - at) if isinstance(at, int) else "?"
        mark = "*" if item.get("in_force") else " "
        files = item.get("files")
        text = f"{mark}r{item.get('revision')!s:<4} {since:<8} {item.get('trust')!s:<6} {item.get('mode')!s:<8} "
        text += f"{'?' if files is None else files!s:<7} {item.get('signer') or ''} {item.get('note') or ''}"
        if item.get("waits"):
            text = f"{text.rstrip()} (waits for image {item.get('image')})"
        lines.append(cut(text.rstrip(), columns))
    lines.append("* in force")
    return "\n".join(lines) + "\n"


def change_line(change: Document, columns: int) -> str:
    """One line of a baseline diff."""
    sign = {"added": "+", "removed": "-", "changed": "~"}.get(str(change.get("what")), "?")
    text = f"{sign} {change.get('kind')!s:<9} {change.get('subject')}"
    before, after = change.get("before") or {}, change.get("after") or {}
    if change.get("what") == "changed":
        parts = [
            f"{column} {_value(column, before.get(column))} -> {_value(column, after.get(column))}"
            for column in after
            if before.get(column) != after.get(column)
        ]
        text += "  " + ", ".join(parts)
    return cut(text, columns) if columns else text
