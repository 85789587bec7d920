"""Decisions: what a command means for the records of one shard. No bytes, no clock, no chance.

`decide(state, command, turn) → reply` stages its changes in the turn; `evolve` makes them so.
"""
