"""Reading and writing the checkpoint formats of others."""
