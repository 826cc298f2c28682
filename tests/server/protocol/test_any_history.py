"""Any history of a repository, through the hub, straight to the registry, and with collections in between, against a model of it."""

from __future__ import annotations

import base64
import json
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deltahub.checkpoint.checkpoint import describe
from deltahub.reference import Reference
from deltahub.registry.gc import collect
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.server.git_attributes import GITATTRIBUTES
from deltahub.server.settings import Settings
from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of, save_checkpoint
from tests.hub_server import hub_server
from tests.server.clients import Client

REPO = "acme/sst2"
AT = f"/api/models/{REPO}"
branches = st.sampled_from(["main", "exp", "a/b"])
paths = st.sampled_from(["a.txt", "b.txt", "sub/a.txt"])
contents = st.sampled_from([b"", b"1", b"2"])


class History(RuleBasedStateMachine):
    """One repository, and what it should hold."""

    @initialize()
    def begin(self) -> None:
        self.open = ExitStack()
        self.folder = Path(self.open.enter_context(tempfile.TemporaryDirectory()))
        self.registry = Registry(LocalStore(self.folder / "served"))
        hub = self.open.enter_context(hub_server(self.registry, Settings(rate=0)))
        self.client = self.open.enter_context(Client(hub.url, hub.token()))
        self.client.create(REPO)
        self.checkpoints = [save_checkpoint(self.folder / f"{n}", value=float(n)) for n in (1, 2)]
        self.trees: dict[str, dict[str, bytes]] = {"main": {}}  # of each branch; a new repository has a first commit
        self.tags: dict[str, dict[str, bytes]] = {}
        self.pushed: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "open"):
            self.open.close()

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        data = None if body is None else json.dumps(body).encode()
        status, _, answer = self.client.ask(method, path, data)
        return status, json.loads(answer or b"null")

    def commit(self, branch: str, *lines: tuple[str, dict]) -> int:
        listed = [("header", {"summary": "s"}), *lines]
        body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in listed).encode()
        return self.client.ask("POST", f"{AT}/commit/{branch.replace('/', '%2F')}", body)[0]

    @rule(branch=branches, path=paths, content=contents)
    def add(self, branch, path, content):
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        status = self.commit(branch, ("file", value))
        if branch not in self.trees:
            assert status == 404
            return
        assert status == 200
        self.trees[branch] = {**self.trees[branch], path: content}

    @rule(branch=branches, path=paths)
    def delete(self, branch, path):
        status = self.commit(branch, ("deletedFile", {"path": path}))
        if path not in self.trees.get(branch, {}):
            assert status == 404
            return
        assert status == 200
        self.trees[branch] = {key: value for key, value in self.trees[branch].items() if key != path}

    @rule(branch=branches, start=branches)
    def new_branch(self, branch, start):
        status, _ = self.ask("POST", f"{AT}/branch/{branch.replace('/', '%2F')}", {"startingPoint": start})
        if start not in self.trees and branch != "main":
            assert status == 404
        elif branch in self.trees:
            assert status == 409
        else:
            assert status == 201
            self.trees[branch] = self.trees[start]

    @rule(branch=branches)
    def delete_branch(self, branch):
        status, _ = self.ask("DELETE", f"{AT}/branch/{branch.replace('/', '%2F')}")
        if branch == "main":
            assert status == 403
            return
        assert status == (200 if branch in self.trees else 404)
        self.trees.pop(branch, None)

    @rule(branch=branches, tag=st.sampled_from(["best", "old"]))
    def tag(self, branch, tag):
        status, _ = self.ask("POST", f"{AT}/tag/{branch.replace('/', '%2F')}", {"tag": tag})
        if branch not in self.trees:
            assert status == 404
            return
        assert status == (409 if tag in self.tags else 201)
        self.tags.setdefault(tag, self.trees[branch])

    @rule(number=st.integers(0, 1))
    def push(self, number):
        folder = self.checkpoints[number]
        new = publish(self.registry, Publication(Reference.parse(REPO), describe(folder), folder)).new
        if new:
            self.trees["main"] = content_of(folder)

    @rule(branch=branches)
    def squash(self, branch):
        status, _ = self.ask("POST", f"{AT}/super-squash/{branch.replace('/', '%2F')}")
        assert status == (200 if branch in self.trees else 404)

    @rule()
    def collect(self):
        collect(self.registry, timedelta(0))

    @invariant()
    def every_branch_and_tag_holds_what_it_should(self):
        if not hasattr(self, "open"):
            return
        status, refs = self.ask("GET", f"{AT}/refs")
        assert status == 200
        assert {ref["name"] for ref in refs["branches"]} == set(self.trees)
        assert {ref["name"] for ref in refs["tags"]} == set(self.tags)
        for ref in (*refs["branches"], *refs["tags"]):
            tree = {**self.tags, **self.trees}[ref["name"]]
            _, listed = self.ask("GET", f"{AT}/tree/{ref['targetCommit']}?recursive=true")
            files = {entry["path"] for entry in listed if entry["type"] == "file"}
            assert files == {*tree, GITATTRIBUTES}
            for path, content in tree.items():
                assert self.client.pull(REPO, path.replace("/", "%2F"), ref["targetCommit"]) == content
        assert set(dict(verify(self.registry)).values()) <= {None}


History.TestCase.settings = settings(
    max_examples=12, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistory = pytest.mark.slow(History.TestCase)
