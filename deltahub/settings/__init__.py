"""What the user has configured: sources, folders, environment variables."""
