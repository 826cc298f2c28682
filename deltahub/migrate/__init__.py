"""Migration of deltas from hubs, tracking stores and directory trees into a registry."""
