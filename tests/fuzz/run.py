#!/usr/bin/python3
"""Fuzzes every reader of the table for some seconds, several at a time, and says what was found.

    python3 -m tests.fuzz.run [--seconds 10] [--jobs 2] [--seed N] [--only NAME ...]
    python3 -m tests.fuzz.run --minimise      what was found becomes the corpus: few small files with the same coverage

It begins with tests/fuzz/corpus and with what earlier runs left in build/fuzz. An input that breaks the invariant is
kept as build/fuzz/crash-NAME-*, and the run fails. Needs atheris (build/venv-fuzz, see `make fuzz`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tests.fuzz import seeds
from tests.fuzz.table import TABLE, Harness

TOP = Path(__file__).resolve().parents[2]
WORK = TOP / "build/fuzz"
MEMORY_MB = 512  # of the whole process, of which Python and the fuzzer take 60
HANG_S = 60  # wall time for one input: a last resort, CPU time is counted for each input (see `one`)
START_S = 120  # loading and instrumenting the product on a busy machine
FILE_MAX = 2048  # bytes of a file of the corpus; hostile samples whose point is their length are made by `seeds`


class Outcome(NamedTuple):
    name: str
    runs: int
    seconds: float
    coverage: int
    trouble: str  # the fuzzer's last words, "" if the invariant held


def fuzz(harness: Harness, seconds: int, seed: int) -> Outcome:
    """One harness in a process of its own."""
    found = WORK / harness.name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={HANG_S}"]
    options += [f"-seed={seed}"] if seed else []
    options += [f"-artifact_prefix={WORK}/crash-{harness.name}-", str(found), str(WORK / "seeds" / harness.name)]
    began = time.monotonic()
    code, said = child(harness, [*options, str(harness.corpus)], seconds + HANG_S + START_S)
    (WORK / f"{harness.name}.log").write_text(said)
    runs = re.search(r"Done (\d+) runs", said)
    coverage = re.findall(r"cov: (\d+)", said)
    trouble = "" if code == 0 and runs else reason(said)
    return Outcome(
        harness.name,
        int(runs[1]) if runs else 0,
        time.monotonic() - began,
        int(coverage[-1]) if coverage else 0,
        trouble,
    )


def child(harness: Harness, options: list[str], patience: float) -> tuple[int, str]:
    """Run the fuzzer; its exit code and all that it said."""
    command = [sys.executable, "-m", "tests.fuzz.one", harness.name, *options]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
    }  # which way through the product is taken goes by the input alone
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=TOP,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return 1, (late.stdout or b"").decode("utf-8", "replace") + f"\nno end within {patience:.0f} s"
    return done.returncode, done.stdout.decode("utf-8", "replace")


def reason(said: str) -> str:
    """From the traceback on, or the end of what it said."""
    at = said.find("=== Uncaught Python exception")
    return said[at:][:4000] if at >= 0 else said[-2000:]


def minimise(harness: Harness) -> str:
    """The corpus anew: of all that is known, what takes a path through the product that none before it took."""
    sources = (WORK / "seeds" / harness.name, harness.corpus, WORK / harness.name)
    known = {path.read_bytes() for source in sources if source.is_dir() for path in source.iterdir()}
    kept: list[bytes] = []
    seen: set[Step] = set()
    for data in sorted(known, key=lambda data: (len(data), data)):
        if len(data) <= FILE_MAX and not (steps := steps_of(harness, data)) <= seen:
            seen |= steps
            kept.append(data)
    shutil.rmtree(harness.corpus, ignore_errors=True)
    harness.corpus.mkdir(parents=True)
    for data in kept:
        (harness.corpus / sha256(data).hexdigest()[:12]).write_bytes(data)
    return f"{len(kept)} of {len(known)} files, {sum(map(len, kept))} bytes, {len(seen)} steps"


Step = tuple[CodeType, int, int]


def steps_of(harness: Harness, data: bytes) -> set[Step]:
    """From which line to which the product went."""
    found: set[Step] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        if "/edgeguard/" not in frame.f_code.co_filename:
            return None
        before = 0 if event == "call" else last.get(id(frame), 0)
        found.add((frame.f_code, before, frame.f_lineno))
        last[id(frame)] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        harness.try_one(data)
    finally:
        sys.settrace(None)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10, help="for each harness")
    parser.add_argument("--jobs", type=int, default=2, help="harnesses at a time")
    parser.add_argument("--seed", type=int, default=0, help="the same inputs each time, as far as it gets; 0: others")
    parser.add_argument("--only", nargs="*", default=[], help="these harnesses only")
    parser.add_argument("--minimise", action="store_true", help="make tests/fuzz/corpus anew")
    given = parser.parse_args(arguments)
    wanted = [one for one in TABLE if not given.only or one.name in given.only]
    seeds.write(WORK / "seeds")
    with ThreadPoolExecutor(given.jobs) as pool:
        if given.minimise:
            for one in wanted:
                print(f"{one.name:10} {minimise(one)}")
            return 0
        outcomes = list(pool.map(lambda one: fuzz(one, given.seconds, given.seed), wanted))
    for one in outcomes:
        print(
            f"{'FAILED' if one.trouble else 'ok':7}{one.name:10}{one.runs:9} inputs {one.seconds:5.0f} s"
            f"  coverage {one.coverage}"
        )
    for one in outcomes:
        if one.trouble:
            print(f"\n{one.name}: an input broke the invariant, see build/fuzz/crash-{one.name}-*\n{one.trouble}")
    failed = sum(bool(one.trouble) for one in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
