"""The hub: push, pull, list and resolve over all sources, with one cache."""
