"""Tests of DeltaHub, a folder for each room of the package."""

import sys

# Pytest rewrites every `assert`; without its copies of the compiled tests each worker would do so anew, for ten seconds.
sys.dont_write_bytecode = False
