"""Wiring: the one place that knows every room. Nothing imports it.

main       starts and stops, in order
loop       one thread, one epoll: descriptors, timers, signals
guard      the nouns below, connected; none of them knows it
sensing    sensors at work: who looks when (snapshots, triggers, hints, ladder reports)
sensors    which sensors there are, their start and renewal, looks out of turn, mounts
river      observations -> engine -> ledger -> everyone who must know
judging    the baseline in force, and how another comes into force; baselines asks the helper for it; bare: none is
rounds     sweeps in time, and what becomes of what they find; sweeps is their queue
keeping    the ledger on disk
remedying  requests to edgeguard-act and its replies; act is the other side
metering   how busy device and guard are, now and then
telling    records: appended, made durable, sealed; journal tells journald; uplinks rings for the network
trouble    what failed of our own, as reports to health
showing    the facts of status; status makes the document, publish writes status.json and metrics.prom
helpers    short-lived children for what is rare and heavy; helper is the child's side, with sweeping, learning,
           signing, authority and history; frames is what goes between
verbs/     answers on the control socket (looking, acting, baselines), with checkup (doctor) and logview (log)
notify     systemd
"""
