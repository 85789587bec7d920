"""Ended flows in LMDB, out of memory: never the truth, made anew from the log when in doubt.

layout.py: bytes of keys and rows. environment.py: transactions, growth, trust. changes.py: rows put
and deleted. rows.py: finding, listing. store.py: projecting, letting go, moving. rollback.py: back
to the last sync. audit.py: the check.
"""
