"""Each row of a batch through a delta of its own."""
