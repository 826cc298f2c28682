"""Deltas behind http(s) links."""
