"""The delta engine: how deltas are placed in a backbone, found, trained and taken out again."""
