"""What a flow is, what may happen to it, and how it is kept. No thread, process, socket or clock.

Reading order: limits, errors, record, policy, commands, queries, replies (the words); machine
(decisions); index (hot lookups); log (bytes); engine (one shard: where decisions meet the log).
"""
