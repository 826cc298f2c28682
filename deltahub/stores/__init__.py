"""Stores: places that keep bytes under keys; all that a registry needs to know of a disk or a bucket."""
