"""Who runs where: processes, inboxes, sockets, routing. Decides nothing about flows.

Reading order: wire (what crosses a socket), inbox (a Pykka inbox that is a selector), service and
waiters and fanouts (a shard's answering), shard and process (where it runs); link, router, gather,
claims and crossing (the caller's side); courier (what shards tell each other); supervisor (who
starts whom again).
"""
