"""The receiving side: verifies, stores, and answers with receipts. Another machine, its own user and package.

authority  certificates and keys: the collector's own and those that devices get
config     edgeguard-collector.toml
database   the few calls that both databases answer; store (SQLite), postgres; schema: the tables, version by version
ingest     what happens to a segment that came; no network, no clock of its own; findings: the newest word on each;
           bulk: ordinary segments of many devices at once;
           statements: who vouches for the keys that signed segments, and what follows for them
server     HTTPS with mutual TLS in front of it, or of a queue (jetstream) from which workers (work) take
alerter    from news to people: alerts (decisions), alertbook (state), webhook, mail, alertlist (what is shown)
events     decoded records, for people and programs; shapes: ocsf, ecs; metrics, defender, chainview
main       the command line; outputs: the verbs that hand on; console: what verbs share
"""
