"""Who runs where: processes, inboxes, sockets, routing. Decides nothing about flows.

Reading order: wire (what crosses a socket), inbox (a Pykka inbox that is a selector), service and
waiters (a shard's answering), shard and process (where it runs); link, router, gather (the
caller's side); supervisor (who starts whom again).
"""
