"""Bytes on disk: frames, segments, positions, values. Knows frames and positions, not flows."""
