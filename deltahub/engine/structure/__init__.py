"""The common names of modules: written down for the main families, inferred for every other transformer."""
