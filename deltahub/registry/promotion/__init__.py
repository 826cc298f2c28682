"""Guarded promotion: rules for protected aliases, requests for their moves, and approvals."""
