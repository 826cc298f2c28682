"""The handle of a delta: making it, switching it, freezing, merging, saving and loading."""
