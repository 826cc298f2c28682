"""Files: atomic writes, durability, permissions, checksums, schemas and archives."""
