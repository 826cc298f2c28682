"""Tests for authors of delta types, stores and sources: subclass a contract, and pytest runs it (docs/extending.md)."""

import pytest

pytest.register_assert_rewrite("deltahub.testing.deltas")

from deltahub.testing.deltas import DeltaContract

__all__ = ["DeltaContract"]
