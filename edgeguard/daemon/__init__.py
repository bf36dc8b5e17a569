"""Wiring: the one place that knows every room. Nothing imports it.

main      starts and stops, in order
loop      one thread, one epoll: descriptors, timers, signals
sensing   sensors -> observations (snapshots, triggers, hints, ladder reports)
river     observations -> engine -> ledger -> everyone who must know
telling   records, journald, status.json, metrics.prom
helpers   short-lived children for what is rare and heavy; helper is the child's side
verbs     answers on the control socket
"""
