"""Text: patterns, suggestions, and text by others that is about to be shown."""
