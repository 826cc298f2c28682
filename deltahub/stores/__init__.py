"""Stores of bytes under keys, on a disk or in a bucket: the only storage interface of a registry."""
