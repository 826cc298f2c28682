"""The journal of a registry in a bucket: what changed, so that a reader need not list every document."""
