"""A hub that keeps what it is given, file by file, and knows nothing of deltas: as the Hugging Face Hub does.

It lives in memory and speaks as much of the protocol as a source asks for.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.server.running import listening

TIME = "2026-01-02T03:04:05.000Z"


@dataclass
class Repo:
    """One repo: files by commit, commits newest first, and what branches and tags point to."""

    private: bool
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, bytes], title: str, text: str = "") -> str:
        sha = uuid.uuid4().hex + "00000000"
        self.trees[sha], self.branches["main"] = tree, sha
        self.log.insert(0, {"id": sha, "title": title, "message": text, "date": TIME, "authors": [{"user": "ada"}]})
        return sha

    def find(self, revision: str) -> str:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.trees:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class Refused(Exception):
    """What is not answered."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        named = {
            "X-Error-Code": code,
            "X-Error-Message": message,
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        super().__init__(message)
        self.answer = JSONResponse({"error": message}, status, {name: value for name, value in named.items() if value})


class PlainHub:
    """All repos; whoever has a token may do everything, whoever has none may read what is public."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.url = ""

    def token(self, _scope: str = "write") -> str:
        return "hf_of_ada"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        try:
            answer = self.answer(request, await request.body())
        except Refused as refusal:
            answer = refusal.answer
        await answer(scope, receive, send)

    def answer(self, request: Request, body: bytes) -> Response:
        parts = [unquote(part) for part in scope_path(request).strip("/").split("/")]
        self.is_signed_in = "authorization" in request.headers
        if request.method != "GET" and not self.is_signed_in:
            raise Refused(401, message="Invalid username or password.")
        match parts:
            case ["api", "repos", "create"]:
                return self.create(request, json.loads(body))
            case ["api", "validate-yaml"]:
                return JSONResponse({"errors": [], "warnings": []})
            case ["api", "models"]:
                return self.list(parse_qs(request.url.query))
            case ["api", "models", space, name, *what]:
                return self.of_repo(f"{space}/{name}", request, what, body)
            case [space, name, "resolve", revision, *path]:
                return self.file(f"{space}/{name}", revision, "/".join(path), request.headers.get("range"))
        raise Refused(404)

    def repo(self, path: str) -> Repo:
        repo = self.repos.get(path)
        if repo is None or (repo.private and not self.is_signed_in):
            raise Refused(404 if self.is_signed_in else 401, "RepoNotFound", "Repository not found")
        return repo

    def create(self, request: Request, body: dict[str, Any]) -> Response:
        path = f"{body['organization']}/{body['name']}"
        url = f"http://{request.headers['host']}/{path}"
        if path in self.repos:
            return JSONResponse({"error": "exists", "url": url}, 409)
        self.repos[path] = Repo(body.get("visibility") == "private")
        self.repos[path].commit({".gitattributes": b""}, "initial commit")
        return JSONResponse({"url": url})

    def list(self, query: dict[str, list[str]]) -> Response:
        shown = [
            self.info(path, info, info.branches["main"])
            for path, info in sorted(self.repos.items())
            if not info.private
        ]
        word, author = query.get("search", [""])[0], query.get("author", [""])[0]
        matches = [
            info
            for info in shown
            if set(query.get("filter", ())) <= set(info["tags"])
            and word.lower() in info["id"].lower()
            and info["author"].startswith(author)
        ]
        return JSONResponse(matches)

    def info(self, path: str, repo: Repo, sha: str) -> dict[str, Any]:
        tree = repo.trees[sha]
        front = re.match(rb"---\n(.*?)\n---", tree.get("README.md", b""), re.DOTALL)
        card = yaml.safe_load(front[1]) if front else {}
        files = [
            {"rfilename": name, "size": len(data), "blobId": git(data), **lfs(name, data)}
            for name, data in tree.items()
        ]
        facts = {"id": path, "author": path.partition("/")[0], "sha": sha, "lastModified": TIME, "cardData": card}
        return {**facts, "siblings": files, "tags": [*card.get("tags", ()), card.get("library_name")]}

    def of_repo(self, path: str, request: Request, segments: list[str], body: bytes) -> Response:  # noqa: PLR0911  (a table)
        repo = self.repo(path)
        match request.method, segments:
            case "GET", [] | ["revision", _]:
                return JSONResponse(self.info(path, repo, repo.find(segments[1] if segments else "main")))
            case "GET", ["refs"]:
                kinds = {"branches": repo.branches, "tags": repo.tags, "converts": {}}
                return JSONResponse(
                    {
                        kind: [{"name": n, "ref": n, "targetCommit": sha} for n, sha in refs.items()]
                        for kind, refs in kinds.items()
                    }
                )
            case "GET", ["commits", _]:
                return JSONResponse(repo.log)
            case "GET", ["tree", revision]:
                tree = repo.trees[repo.find(revision)]
                return JSONResponse(
                    [{"type": "file", "path": n, "size": len(d), "oid": git(d)} for n, d in tree.items()]
                )
            case "POST", ["tag" | "branch" as kind, name]:
                document = json.loads(body or b"{}")
                refs = repo.tags if kind == "tag" else repo.branches
                name, sha = (document["tag"], repo.find(name)) if kind == "tag" else (name, repo.branches["main"])
                if name in refs:
                    raise Refused(409, message="it exists")
                refs[name] = sha
                return JSONResponse({})
            case "DELETE", ["tag", name]:
                if repo.tags.pop(name, None) is None:
                    raise Refused(404, "RevisionNotFound", "no such tag")
                return JSONResponse({})
            case "POST", ["preupload", revision]:
                tree = repo.trees[repo.find(revision)]
                names = [entry["path"] for entry in json.loads(body)["files"]]
                same = {name: {"oid": git(tree[name])} for name in names if name in tree}
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                return JSONResponse({"files": [{"path": name, **plain, **same.get(name, {})} for name in names]})
            case "POST", ["commit", _]:
                return self.commit(path, repo, [json.loads(line) for line in body.splitlines()])
        raise Refused(404)

    def commit(self, path: str, repo: Repo, lines: list[dict[str, Any]]) -> Response:
        head, header = repo.branches["main"], lines[0]["value"]
        if header.get("parentCommit", head) != head:
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        tree = dict(repo.trees[head])
        for line in lines[1:]:
            if line["key"] == "file":
                tree[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del tree[line["value"]["path"]]
        sha = repo.commit(tree, header["summary"], header["description"])
        return JSONResponse({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{path}/commit/{sha}"})

    def file(self, path: str, revision: str, name: str, part: str | None) -> Response:
        repo = self.repo(path)
        sha = repo.find(revision)
        if name not in repo.trees[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        data = repo.trees[sha][name]
        etag = hashlib.sha256(data).hexdigest() if lfs(name, data) else git(data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}
        if part is None:
            return Response(data, headers=headers)
        start = int(part.removeprefix("bytes=").removesuffix("-"))
        return Response(data[start:], 206, {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


def scope_path(request: Request) -> str:
    """The path as it was sent: a quoted slash inside a part is none between parts."""
    return str(request.scope["raw_path"].decode())


def git(data: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs(name: str, data: bytes) -> dict[str, Any]:
    """What is said of a file in LFS."""
    if not name.endswith((".safetensors", ".bin")):
        return {}
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


@contextlib.contextmanager
def plain_hub() -> Iterator[PlainHub]:
    """Serve one until the block ends."""
    hub = PlainHub()
    with listening(hub) as (host, port):
        hub.url = f"http://{host}:{port}"
        yield hub
