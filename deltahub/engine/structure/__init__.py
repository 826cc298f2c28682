"""The common names of modules: explicit for the main families, inferred for every other transformer."""
