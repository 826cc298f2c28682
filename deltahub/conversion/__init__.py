"""Conversion of deltas from any format that can be read to any that can be written."""
