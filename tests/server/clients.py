"""A client as small as can be, so that what is measured or tested is the hub: one connection, pushes and pulls."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

from deltahub.sources.huggingface.download import git_blob


def commit_body(files: Mapping[str, bytes | str]) -> bytes:
    """The body of a commit, with its files in it."""
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "a commit", "description": ""}}]
    for path, data in files.items():
        content = base64.b64encode(data.encode() if isinstance(data, str) else data).decode()
        lines.append({"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}})
    return "\n".join(map(json.dumps, lines)).encode()


class Client:
    """One connection to a hub.

    Args:
        url: of the hub.
        secret: a token's.
    """

    def __init__(self, url: str, secret: str, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
        self._headers = {"Authorization": f"Bearer {secret}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request: the status, the headers and the body of its answer."""
        self._connection.request(method, path, body, {**self._headers, **headers})
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def create(self, repository: str) -> None:
        """Create a repository, unless it is there."""
        namespace, _, name = repository.partition("/")
        body = json.dumps({"name": name, "organization": namespace}).encode()
        status, _, answer = self.ask("POST", "/api/repos/create", body)
        assert status in (200, 409), answer

    def commit(self, repository: str, files: Mapping[str, bytes]) -> str:
        """Commit files; on return the hub has promised to keep them. Returns the commit's id."""
        body = commit_body(files)
        kind = {"Content-Type": "application/x-ndjson"}
        status, _, answer = self.ask("POST", f"/api/models/{repository}/commit/main", body, **kind)
        assert status == 200, (status, answer)
        return str(json.loads(answer)["commitOid"])

    def pull(self, repository: str, path: str, revision: str = "main") -> bytes:
        """A file, as clients fetch it: its head first, then its bytes, whose digest must be the one in the head."""
        status, headers, _ = self.ask("HEAD", f"/{repository}/resolve/{revision}/{path}")
        assert status == 200, status
        status, _, data = self.ask("GET", f"/{repository}/resolve/{headers['X-Repo-Commit']}/{path}")
        assert status == 200, (status, data)
        assert headers["ETag"].strip('"') in (hashlib.sha256(data).hexdigest(), git_blob(data))
        return data
