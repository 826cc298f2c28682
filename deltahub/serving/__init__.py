"""Plugins of model servers: a request names a delta, and the server gets a verified adapter."""
