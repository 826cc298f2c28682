"""Quantised layers read as plain ones: one class for each kind, found by `kinds.quantised`."""
