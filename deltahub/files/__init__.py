"""Files: atomic writes, durability, permissions, checksums, schemas and archives."""

from deltahub.renamed import forward

__getattr__ = forward(__name__, "atomic")
