"""Push, pull, list and resolve over all sources, with one cache."""
