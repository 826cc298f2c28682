"""Tests for authors of delta types, stores and sources: subclass a contract, and pytest runs it (docs/extending.md)."""

import pytest

pytest.register_assert_rewrite("deltahub.testing.deltas", "deltahub.testing.sources", "deltahub.testing.stores")

from deltahub.testing.deltas import DeltaContract
from deltahub.testing.sources import SourceContract
from deltahub.testing.stores import StoreContract

__all__ = ["DeltaContract", "SourceContract", "StoreContract"]
