"""A read-only listing of Hugging Face's own cache, which is separate from DeltaHub's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CachedRepository:
    """One repository in Hugging Face's cache.

    Attributes:
        name: ``"org/name"``.
        kind: ``"model"``, ``"dataset"`` or ``"space"``.
        revisions: how many of its commits are cached.
        size: bytes of its files, each counted once.
        used: when it was last used, seconds since 1970.
        folder: its folder in the cache.
    """

    name: str
    kind: str
    revisions: int
    size: int
    used: float
    folder: Path


def repositories() -> tuple[list[CachedRepository], list[str]]:
    """Return the repositories in Hugging Face's cache, sorted by name, and a warning for each unreadable part."""
    from huggingface_hub import scan_cache_dir  # late: half a second that few calls need
    from huggingface_hub.errors import CacheNotFound

    try:
        cache_info = scan_cache_dir()
    except CacheNotFound:
        return [], []
    cached_repositories = [
        CachedRepository(
            repo.repo_id, repo.repo_type, len(repo.revisions), repo.size_on_disk, repo.last_accessed, repo.repo_path
        )
        for repo in cache_info.repos
    ]
    return sorted(cached_repositories, key=lambda repo: (repo.name, repo.kind)), [
        str(warning) for warning in cache_info.warnings
    ]
