"""All routes of the Hugging Face Hub protocol."""

from __future__ import annotations

from typing import Final

from deltahub.server import (
    amendments,
    commits,
    courtesies,
    downloads,
    identity,
    lfs,
    lifecycle,
    listing,
    packs,
    preupload,
    receiving,
    revisions,
    trees,
)

routes: Final = [
    *courtesies.routes,  # first: its data set routes must not be matched as a repository's name
    *identity.routes,
    *lifecycle.routes,
    *listing.routes,
    *revisions.routes,
    *trees.routes,
    *preupload.routes,
    *commits.routes,
    *lfs.routes,
    *receiving.routes,
    *downloads.routes,
    *packs.routes,
    *amendments.routes,
    *courtesies.last,
]
