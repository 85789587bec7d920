"""Where handlers run: threads, processes, or coroutines of one event loop.

Knows handlers and when they end; claims, leases and settlements are the worker's.
"""
