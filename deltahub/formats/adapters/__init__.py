"""Checkpoints of AdapterHub's `adapters` library.

reading     from a folder to a checkpoint          bottleneck, low_rank, prefix, heads    conversion of each method
fields      the supported fields of the config     families, placement, names             where `adapters` puts its modules

Each adapter becomes one delta that computes the same, or is refused.
"""
