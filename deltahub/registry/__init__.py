"""Registries: versions, aliases, tags, search and checks over a store."""
