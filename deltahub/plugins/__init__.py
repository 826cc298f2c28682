"""Classes that other installed packages add."""
