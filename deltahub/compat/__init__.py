"""Interfaces of other libraries over DeltaHub, so that programs written for them run without changes."""
