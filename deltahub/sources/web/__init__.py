"""Deltas at http(s) URLs."""
