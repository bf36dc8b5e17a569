"""Upgrades: which changes of files are explained by packages, and which only came at the same time.

    hook (edgeguard-pin)   keeps the .debs, the archive's indexes and the old lists of files in the spool
    transactions           what lies in the spool, read strictly
    deb                    what a .deb says of each path: the same program unpacks it here that will install it
    archive                whether an archive that this device trusts vouches for a .deb
    expected               all of that of one transaction, as a manifest on disk
    derived                files that no .deb holds and that are made of what is in one: compiled modules, links, caches
    judge                  what lies on the disk against what is expected; the reference values that come of it
    overlay                these, signed by the device and kept over the baseline

All of it runs in helpers. The daemon only holds what it does not know yet (`daemon/upgrading.py`).
"""
