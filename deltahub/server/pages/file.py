"""A file of a delta: text as text, tensors as a table, anything else as a link. Nothing is ever executed."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.server.pages.lookups import content_of, file_of, repository_of, version_of
from deltahub.server.pages.rendering import page

LARGEST: Final = 256 << 10  # bytes of a text to show
_TENSORS: Final = 2000


def file(request: Request) -> Response:
    """Show one file of a version."""
    repository = repository_of(request)
    delta = version_of(repository, request.path_params["revision"])
    entry = file_of(delta, request.path_params["path"])
    text, notice = None, ""
    is_weights = entry.path.endswith(".safetensors")
    if not is_weights:
        if entry.size > LARGEST:
            notice = f"The file has {entry.size:,} bytes; up to {LARGEST:,} are shown."
        else:
            try:
                text = content_of(request, entry).decode()
            except UnicodeDecodeError:
                notice = "This is not a text file."
            else:
                if "\0" in text:
                    text, notice = None, "This is not a text file."
    tensors = delta.manifest.tensors if is_weights else ()
    return page(
        request,
        "file.html",
        document=repository.document,
        found=delta,
        private=repository.private,
        entry=entry,
        text=text,
        why=notice,
        tensors=tensors[:_TENSORS],
        more=max(0, len(tensors) - _TENSORS),
    )
