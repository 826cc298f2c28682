"""DeltaHub's command line."""
