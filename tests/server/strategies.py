"""What a fuzzer sends to a hub: names, queries, headers and bodies, some of them as clients send them."""

from __future__ import annotations

import json

from hypothesis import strategies as st

_GOOD = [
    "acme",
    "ner",
    "main",
    "v1",
    "v2",
    "README.md",
    "a",
    "a%2Fb.json",
    "refs%2Fheads%2Fmain",
    "HEAD",
    "models",
    "sst2",
    "0" * 40,
]
_BAD = [
    *[
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%2F",
        "%5c",
        "%00",
        "a%00b",
        "%0d%0aX-Evil:%201",
        "%ff",
        "%c0%ae",
        "%",
        "%zz",
        "%E2%80%AE",
        "%F0%9F%92%A9",
    ],
    *[
        "~",
        "*",
        "-1",
        "null",
        "true",
        "acme.git",
        "con",
        "v0",
        "v999999999999",
        "sha256:00",
        "%7B%7B7*7%7D%7D",
        "%27%20OR%201=1",
        "$(id)",
        "a--b",
        "%20",
        "@",
        "+",
        "x.lock",
    ],
    *(" ", "\x7f", "a" * 300, "%EF%BC%8E%EF%BC%8E"),
]
SEGMENTS = st.sampled_from(_GOOD) | st.sampled_from(_BAD) | st.text(st.characters(codec="latin-1"), max_size=8)

_WORDS = st.sampled_from(
    [
        "path",
        "paths",
        "name",
        "organization",
        "type",
        "tag",
        "message",
        "files",
        "size",
        "sample",
        "oid",
        "objects",
        "operation",
        "key",
        "value",
        "content",
        "encoding",
        "summary",
        "parentCommit",
        "startingPoint",
        "visibility",
        "fromRepo",
        "toRepo",
        "transfers",
        "hash_algo",
        "ref",
        "parts",
        "partNumber",
        "etag",
        "gitIgnore",
        "private",
        "gated",
        "header",
        "lfsFile",
        "algo",
        "repoType",
        "description",
        "expand",
    ]
)
_TEXTS = st.sampled_from(
    ["acme/ner", "base64", "file", "deletedFile", "deletedFolder", "upload", "basic", "sha256", "�", "\x00", "YQ=="]
)
_NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
_SCALARS = st.none() | st.booleans() | _NUMBERS | SEGMENTS | _TEXTS
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS | SEGMENTS, inner, max_size=5),
    max_leaves=12,
)
_OBJECTS = st.dictionaries(_WORDS, JSON, max_size=6)
_KEYS = st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder", "strange"]) | _SCALARS
LINES = st.lists(_OBJECTS | st.fixed_dictionaries({"key": _KEYS, "value": _OBJECTS | JSON}), max_size=6)


def dumped(value: object) -> bytes:
    """JSON, with whatever it may hold escaped."""
    return json.dumps(value).encode()


BODIES = (
    st.just(b"")
    | (_OBJECTS | JSON).map(dumped)
    | LINES.map(lambda lines: b"\n".join(map(dumped, lines)))
    | st.binary(max_size=60)
    | st.sampled_from(
        [b"[" * 5000, b"{" * 100, b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"paths=%ff&paths=..", b'"' * 9]
    )
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(b"range if-none-match if-range content-type accept x-forwarded-for cookie expect".split()),
        st.sampled_from(
            b'bytes=0-0 bytes=-1 bytes=5-1 bytes=99999999999999999999- bytes=0-1,2-3 bytes=a-b * " W/ application/json '
            b"application/x-ndjson text/html multipart/form-data;boundary=x \xff\x00".split(b" ")
        ),
    ),
    max_size=3,
)
_ASKED = st.sampled_from(
    [
        "limit",
        "cursor",
        "search",
        "filter",
        "sort",
        "author",
        "recursive",
        "expand",
        "full",
        "blobs",
        "include_prs",
        "create_pr",
        "q",
        "page",
        "signature",
        "expires",
        "with",
    ]
)
QUERIES = st.lists(st.tuples(_ASKED, SEGMENTS), max_size=3).map(
    lambda pairs: "&".join(f"{key}={value}" for key, value in pairs)
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
