"""The body of a commit is read as it comes, however it is cut, and what is no commit is refused in a sentence."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.server.errors import Refusal
from deltahub.server.routes.operations import Added, Deleted, Named, Parser

OID = "0" * 64
HEADER = {"key": "header", "value": {"summary": "s", "description": "d", "parentCommit": "0123456"}}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"content":"', '\\"content\\":\\"AAAA', '{"content": "QQ=="}', "content", '":"', "\\", "\n"]
)


def line(key: str, **value: object) -> dict:
    return {"key": key, "value": value}


def body_of(*lines: dict, **options: object) -> bytes:
    return b"".join(json.dumps(entry, **options).encode() + b"\n" for entry in lines)


def file(path: str, data: bytes) -> dict:
    return line("file", content=base64.b64encode(data).decode(), path=path, encoding="base64")


def parsed(folder, body: bytes, step: int = 1 << 20, largest: int = 1 << 20):
    parser = Parser(folder, largest)
    try:
        for start in range(0, len(body), step):
            parser.feed(body[start : start + step])
        return parser.finish()
    finally:
        parser.close()


@given(st.lists(st.tuples(texts, st.binary(max_size=60)), max_size=4), texts, st.integers(1, 40), st.booleans())
def test_every_commit_is_read_however_it_is_cut(tmp_path_factory, files, summary, step, wide):
    spool = tmp_path_factory.mktemp("spool")
    separators = (" , ", " : ") if wide else (",", ":")
    head = line("header", summary=summary, description=summary)
    body = body_of(head, *(file(path, data) for path, data in files), separators=separators, ensure_ascii=not wide)
    found = parsed(spool, body, step)

    assert (found.summary, found.description, found.parent) == (summary, summary, None)
    assert [(added.path, added.file.read_bytes()) for added in found.listed] == files
    for added, (_, data) in zip(found.listed, files, strict=True):
        assert (added.sha256, added.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_all_operations_are_read_in_their_order(tmp_path):
    body = body_of(
        HEADER,
        line("lfsFile", path="w", algo="sha256", oid=OID, size=7),
        file("a", b"1"),
        line("deletedFile", path="b"),
        line("lfsFile", path="c", oid=OID),
        line("deletedFolder", path="d/"),
    )
    found = parsed(tmp_path, body)

    assert found.parent == "0123456"
    assert [type(operation) for operation in found.listed] == [Named, Added, Deleted, Named, Deleted]
    assert (found.listed[0], found.listed[3]) == (Named("w", OID, 7), Named("c", OID, None))
    assert (found.listed[2], found.listed[4]) == (Deleted("b", False), Deleted("d", True))


def test_a_file_of_many_blocks_takes_little_memory(tmp_path):
    data = bytes(48 << 20)
    body = memoryview(body_of(HEADER, file("big", data)))
    parser = Parser(tmp_path, 1 << 30)
    tracemalloc.start()
    for start in range(0, len(body), 1 << 20):
        parser.feed(bytes(body[start : start + (1 << 20)]))
    found = parser.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (found.listed[0].size, peak < 12 << 20) == (len(data), True)


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        (b"", 400, "is empty"),
        (b"\n\n", 400, "is empty"),
        (b"nonsense\n", 400, "Line 1 of the commit is not JSON"),
        (b"[]\n", 400, "not an object with 'key' and 'value'"),
        (b'{"key":"header","value":7}\n', 400, "not an object with 'key' and 'value'"),
        (b'{"key":"header","value":{"summary":7}}\n', 400, "'summary' in the commit must be a text"),
        (body_of(line("magic", path="a")), 400, "the key 'magic', which is unknown"),
        (body_of(line("file", path="a")), 400, "has no content in base64"),
        (body_of(line("file", path="a", content="QQ==", encoding="utf-8")), 400, "has no content in base64"),
        (body_of(line("file", path="a", content="Q")), 400, "ends too early"),
        (body_of(line("file", path="a", content="Q?==")), 400, "is not base64"),
        (b'{"key":"file","value":{"path":"a","content":"QQ==","content":"QQ=="}}\n', 400, "has content twice"),
        (b'{"key":"file","value":{"path":"a","content":"QQ==', 400, "ends within the content"),
        (b'{"key":"file","value":{"path":"a","content":"QQ=="', 400, "is not JSON"),
        (b'{"key":"file","content":"QQ==","value":{"path":"a"}}\n', 400, "has no content in base64"),
        (body_of(line("lfsFile", path="a", oid="7")), 400, "needs an oid of 64 hex digits"),
        (body_of(line("lfsFile", path="a", oid=OID, algo="md5")), 400, "needs an oid of 64 hex digits"),
        (body_of(line("lfsFile", path="a", oid=OID, size=-1)), 400, "not a number of bytes"),
        (b'{"key":"' + b"x" * 300_000, 413, "longer than 262,144 bytes"),
        (body_of(file("a", bytes(1025))), 413, "larger than the 1,024 bytes"),
        (body_of(HEADER) * 25_001, 413, "more than 25,000 lines"),
    ],
)
def test_an_invalid_commit_is_refused(tmp_path, lines, status, said):
    with pytest.raises(Refusal) as caught:
        parsed(tmp_path, lines, largest=1024)
    assert (caught.value.status, said in caught.value.message) == (status, True), caught.value.message


def test_a_path_that_no_file_can_have_is_not_kept_until_all_of_the_commit_is_there(tmp_path):
    for key, more in (("deletedFile", {}), ("lfsFile", {"oid": OID}), ("deletedFolder", {})):
        with pytest.raises(Refusal, match="1,025 letters; 1,024 are the most"):
            parsed(tmp_path, body_of(line(key, path="x" * 1025, **more)))
