"""Answers on the control socket, one function a verb, in the order of control.VERBS.

Handlers answer from memory and return at once. What takes time (learning, a scan, signing, an act) goes on in a
helper, and the answer follows when it is done, whether or not the client is still there. They know the guard; it does
not know them.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeguard.control_server.server import Handler
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.verbs.acting import Acting
from edgeguard.daemon.verbs.baselines import BaselineVerbs
from edgeguard.daemon.verbs.looking import Looking


def table(guard: Guard) -> Mapping[str, Handler]:
    """Every verb with its handler."""
    looking, acting, baselines = Looking(guard), Acting(guard), BaselineVerbs(guard)
    return {
        "Status": looking.status,
        "Findings": looking.findings,
        "Explain": looking.explain,
        "Why": looking.why,
        "Log": looking.log,
        "Scan": acting.scan,
        "Accept": acting.accept,
        "Undo": acting.undo,
        "BaselineShow": baselines.show,
        "BaselineDiff": baselines.diff,
        "BaselineHistory": baselines.history,
        "BaselineLearn": baselines.learn,
        "BaselineInstall": baselines.install,
        "Doctor": looking.doctor,
        "Reload": acting.reload,
        "Version": looking.version,
    }
