"""Routing: each row of a batch through its own delta."""
