"""edgeguard-helper VERB: the child's side of what is rare and heavy. One verb, then gone.

load     verify the baselines on disk, hand over the newest that is valid
learn    read the device, write manifest and observed.db, sign a first baseline
rebase   sign the next revision: policy compiled anew, or findings accepted
install  verify a baseline from elsewhere and put it in force
sweep    find what changed among the watched files
deep     read some of the watched files again that seem unchanged
prepare  read what packages that are being installed will do to files
explain  look at what they did, and sign the reference values that come of it
diff     what two baselines differ in
history  the baselines that are kept
image    what the image that runs now differs in from the one before

The question comes as one CBOR map on standard input, answers go out as frames (see `frames`). What a verb may not do
by itself it says: {"error": text} for a failure, {"problems": [...]} for a policy that a person must mend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from edgeguard import settings as settings_module
from edgeguard.codec import cbor
from edgeguard.daemon.frames import Out
from edgeguard.errors import EdgeGuardError, PolicyError
from edgeguard.settings import Settings

REQUEST_MAX = 8 * 1024 * 1024  # bytes of the question

Verb = Callable[[Settings, dict[str, Any], "Out"], None]


def main(arguments: list[str]) -> int:
    """`arguments`: VERB --settings FILE."""
    if len(arguments) != 3 or arguments[1] != "--settings" or arguments[0] not in VERBS:
        sys.stderr.write(f"usage: edgeguard-helper {'|'.join(VERBS)} --settings FILE\n")
        return 64
    out = Out(1)
    try:
        settings = settings_module.load(arguments[2])
        with open(0, "rb", closefd=False) as question:
            request = cbor.decode(question.read(REQUEST_MAX + 1), depth=16, size=REQUEST_MAX)
        VERBS[arguments[0]](settings, request, out)
        out.flush()
    except PolicyError as error:
        out.say({"problems": [str(problem) for problem in error.problems]})
    except BrokenPipeError:
        return 1
    except EdgeGuardError as error:
        out.say({"error": str(error) or type(error).__name__, "code": error.code, "name": type(error).__name__})
        return 1
    except OSError as error:
        out.say({"error": f"{error.filename or 'system'}: {error.strerror}", "code": "EG-HLTH-007", "name": "OSError"})
        return 1
    return 0


def _load(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.signing import load

    load(settings, request, out)


def _learn(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.learning import learn

    learn(settings, request, out)


def _rebase(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.signing import rebase

    rebase(settings, request, out)


def _install(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.signing import install

    install(settings, request, out)


def _sweep(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.sweeping import sweep

    sweep(settings, request, out)


def _deep(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.deepening import deep

    deep(settings, request, out)


def _prepare(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.upgrading import prepare

    prepare(settings, request, out)


def _explain(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.upgrading import explain

    explain(settings, request, out)


def _diff(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.history import diff

    diff(settings, request, out)


def _history(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.history import history

    history(settings, request, out)


def _image(settings: Settings, request: dict[str, Any], out: Out) -> None:
    from edgeguard.daemon.handovers import switch

    switch(settings, request, out)


VERBS: dict[str, Verb] = {
    "load": _load,
    "learn": _learn,
    "rebase": _rebase,
    "install": _install,
    "sweep": _sweep,
    "deep": _deep,
    "prepare": _prepare,
    "explain": _explain,
    "diff": _diff,
    "history": _history,
    "image": _image,
}
