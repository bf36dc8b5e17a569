"""One harness under the coverage-guided fuzzer: `python -m tests.fuzz.one NAME [libFuzzer options]`; see `run`.

Every input has a bound of CPU time of its own: the fuzzer's time-out counts wall time, which another program may eat.
"""

from __future__ import annotations

import sys
import time

import atheris

with atheris.instrument_imports(include=["edgeguard", "tomllib", "json.decoder"]):
    from tests.fuzz.table import CPU_S, TABLE


def main(arguments: list[str]) -> None:
    (harness,) = (one for one in TABLE if one.name == arguments[1])

    def try_one(data: bytes) -> None:
        began = time.thread_time()
        harness.try_one(data)
        spent = time.thread_time() - began
        assert spent < CPU_S, f"{spent:.1f} s of CPU for {len(data)} bytes"

    atheris.Setup([arguments[0], f"-max_len={harness.size}", *arguments[2:]], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
