"""The cache of deltas on this machine: pulled deltas, the meanings of their names, and maintenance."""
