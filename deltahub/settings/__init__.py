"""The user's configuration: sources, folders, environment variables."""

from deltahub.renamed import forward

__getattr__ = forward(__name__, "user")
