"""A burst of 100,000 files while the daemon has a hundredth of a processor and a short queue: what it needs for that.

The test that shows that nothing is missed (tests/root/test_file_burst.py), in full size. Needs root and loop devices.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
FILES = 100_000
GROWTH_KB = 32 * 1024


def main() -> int:
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "root", "-o", "cache_dir=build/pytest"]
    test = "tests/root/test_file_burst.py::test_nothing_is_missed_and_nothing_is_made_up"
    environment = {**os.environ, "EDGEGUARD_BURST": str(FILES)}
    done = subprocess.run([*words, test], cwd=TREE, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) differences: (\d+) kB more at most; (.*)", done.stdout)
    if done.returncode or found is None:
        print(done.stdout[-2000:])
        return done.returncode
    reference = f"{found[1]} differences, all told; {found[3]}"
    figure = {"name": f"burst of {FILES:,} files: RSS grows by", "value": int(found[2]), "unit": "kB"}
    print(json.dumps(figure | {"reference": reference, "bar": GROWTH_KB}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
