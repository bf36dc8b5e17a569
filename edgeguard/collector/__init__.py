"""The receiving side: verifies, stores, and answers with receipts. Another machine, its own user and package.

authority   certificates and keys: the collector's own and those that devices get
store       the SQLite file: devices, segments, records, heads, incidents
statements  who vouches for the keys that signed segments, and what follows for them
ingest      what happens to a segment that came; no network, no clock of its own
server      HTTPS with mutual TLS in front of it
events      decoded records, for people and programs
main        the command line
"""
