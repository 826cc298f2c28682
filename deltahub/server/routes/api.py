"""All routes of the Hugging Face Hub protocol."""

from __future__ import annotations

from typing import Final

from deltahub.server.routes import (
    access_requests,
    amendments,
    card_validation,
    commits,
    downloads,
    edits,
    identity,
    lfs,
    lfs_files,
    lifecycle,
    listing,
    packs,
    preupload,
    promotion,
    revisions,
    trees,
    unsupported,
    uploads,
    webhooks,
)

routes: Final = [
    *unsupported.routes,  # first: its data set routes must not be matched as a repository's name
    *card_validation.routes,
    *identity.routes,
    *webhooks.routes,
    *access_requests.routes,
    *lifecycle.routes,
    *listing.routes,
    *revisions.routes,
    *trees.routes,
    *preupload.routes,
    *commits.routes,
    *lfs.routes,
    *lfs_files.routes,
    *uploads.routes,
    *downloads.routes,
    *packs.routes,
    *amendments.routes,
    *edits.routes,
    *promotion.routes,
    *unsupported.last,
]
