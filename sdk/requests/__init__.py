"""From a call to a command: the one place that names the fields, checks them, and packs values.

Each `flow_*` method returns an `Ask`: what to send, and how the reply becomes the caller's value.
Knows nothing of sockets, files or shards.
"""
