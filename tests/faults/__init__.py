"""Faults: what breaks on demand, and the proofs that nothing acknowledged is lost to it."""

from tests.faults.injection import FORBIDDEN, FULL, INTERRUPT, KILL, Faults

__all__ = ["FORBIDDEN", "FULL", "INTERRUPT", "KILL", "Faults"]
