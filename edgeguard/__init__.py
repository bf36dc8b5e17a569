"""EdgeGuard: a device guard for Debian and Raspberry Pi OS.

The house, in the order in which an observation walks through it:

    linux/         what the kernel says, raw; knows nothing of us
    codec/         bytes: deterministic CBOR, COSE_Sign1, the file manifest
    model, errors  the nouns and what can go wrong
    sensors/       observations, one file a sensor
    baseline/      what should be: policy, signed document, store
    evaluate/      what is wrong: conditions, engine, ledger (pure)
    remediations/  putting it right: apply, verify, revert
    records/       telling: registry, wire, spool, seal, uplink
    control        the local socket, both halves
    daemon/        wiring; imported by nobody
    cli/           what people type; collector/ is the receiving side
"""

__version__ = "0.1.0"
