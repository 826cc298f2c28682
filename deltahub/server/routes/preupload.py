"""Upload mode of each file of a commit, and files that need not be sent.

The repository's ``.gitignore`` and rules for secrets exclude files. A client asks before it sends the files of a folder and skips ignored ones. The rules for secrets come first, so that ``!.env`` in
a ``.gitignore`` lets that file in. A single file uploaded by name is intended, so only the ``.gitignore`` applies to it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import re2
from pathspec import GitIgnoreSpec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.checkpoint.manifest import FileEntry
from deltahub.server.bodies import LARGE, with_json
from deltahub.server.errors import Refusal
from deltahub.server.git_attributes import IsLarge
from deltahub.server.paths import MODEL
from deltahub.server.pickles import refuse_pickle
from deltahub.server.repositories import Repository, may_change, open_repository

GITIGNORE: Final = ".gitignore"
LARGEST: Final = 64 << 10  # bytes of a .gitignore
_MOST_RULES: Final = 1000
_SECRETS: Final = (
    *(".env", ".env.*", "!.env.example", "!.env.sample", "!.env.template"),
    *("*.key", "*.pem", "*.p12", "*.pfx", "*.keystore", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    *(".netrc", "_netrc", ".pypirc", ".git-credentials", ".npmrc", ".aws/credentials", ".ssh/"),
)


def ignore_rules(gitignore: str, *, named: bool) -> GitIgnoreSpec:
    """Return the exclusion rules, matched in linear time.

    Args:
        gitignore: the text of the ``.gitignore``.
        named: whether the upload is a single file given by name, not found in a folder.

    Raises:
        Refusal: the text is too large, or contains a rule that git does not know.
    """
    lines = gitignore.splitlines()
    if len(gitignore.encode(errors="replace")) > LARGEST or len(lines) > _MOST_RULES:
        raise Refusal(400, f"A {GITIGNORE} here has at most {LARGEST:,} bytes and {_MOST_RULES:,} lines. Shorten it.")
    try:
        return GitIgnoreSpec.from_lines([*(() if named else _SECRETS), *lines], backend="re2")
    except (ValueError, re2.error) as error:
        raise Refusal(400, f"The {GITIGNORE} cannot be followed: {error}. Correct or shorten it.") from error


_MOST: Final = 1000  # files per call


def preupload(request: Request, body: dict[str, Any]) -> Response:
    """Answer how each file is to be sent, and which content the repository has at its path.

    To a hub without Xet, clients with Xet installed can send a file only inside the commit, and do not reveal that they have Xet.
    So that is the default mode; in the other one, large files (see `deltahub.server.git_attributes`) are sent ahead.
    """
    repository = open_repository(request, write=True)
    files = body.get("files")
    if not isinstance(files, list) or len(files) > _MOST:
        raise Refusal(400, f"The body needs 'files', a list of at most {_MOST}.")
    revision = request.path_params["revision"]
    commit = repository.at(revision) if repository.document.versions else repository.commit(None)
    entries = {entry.path: entry for entry in commit.files}
    rules = ignore_rules(_gitignore(repository, entries, body), named=len(files) == 1)
    is_large = repository.large_files(commit)
    answers = [_answer(repository, entries, rules, is_large, file) for file in files]
    return JSONResponse({"commitOid": commit.id, "files": answers})


def _gitignore(repository: Repository, entries: Mapping[str, FileEntry], body: Mapping[str, Any]) -> str:
    """Return the text of the .gitignore sent by the client, else of the one in the repository."""
    if isinstance(text := body.get("gitIgnore"), str):
        return text
    entry = entries.get(GITIGNORE)
    if entry is None or not 0 < entry.size <= LARGEST:
        return ""
    return repository.state.read(entry, 0, entry.size).decode(errors="replace")


def _answer(
    repository: Repository, entries: Mapping[str, FileEntry], rules: GitIgnoreSpec, is_large: IsLarge, file: Any
) -> dict[str, Any]:
    path, size, sample = (
        (file.get(key) for key in ("path", "size", "sample")) if isinstance(file, dict) else (None,) * 3
    )
    if not isinstance(path, str) or not isinstance(size, int):
        raise Refusal(400, "Each file needs 'path', a text, and 'size', a number of bytes.")
    if path not in entries and rules.match_file(path):
        return {"path": path, "uploadMode": "regular", "shouldIgnore": True}
    settings = repository.state.settings
    if size > settings.max_file:
        raise Refusal(413, f"{path} has {size:,} bytes, and this hub takes {settings.max_file:,} at most.")
    refuse_pickle(settings, repository.path.namespace, path, size, _bytes(sample))
    lfs = settings.upload_mode == "lfs" and is_large(FileEntry(path, "", size))
    if not lfs and size > (largest := settings.largest_in_commit):
        message = (
            f"{path} has {size:,} bytes, and this hub takes {largest:,} at most inside of a commit. Ask its administrator for a larger "
            "--max-commit, or for --upload-mode lfs."
        )
        raise Refusal(413, message)
    answer: dict[str, Any] = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
    entry = entries.get(path)
    if entry and entry.size == size:  # a file of another size certainly differs
        answer["oid"] = entry.sha256 if lfs else repository.state.git_oid(entry.sha256, entry.size)
    return answer


def _bytes(sample: Any) -> bytes:
    try:
        return base64.b64decode(sample) if isinstance(sample, str) else b""
    except (binascii.Error, ValueError):
        return b""


routes: Final = [
    Route(f"{MODEL}/preupload/{{revision:part}}", with_json(preupload, may_change, LARGE), methods=["POST"]),
]
