"""The command line of DeltaHub."""
