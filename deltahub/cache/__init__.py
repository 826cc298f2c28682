"""The cache of deltas on this machine: what was pulled, what names meant, and care of it."""
