"""The search index of a registry, and queries over it."""
