"""An S3 server in this process that keeps everything in memory: a request costs a tenth of what it does in a process of its own.

It answers what `deltahub.stores.s3` asks. That it answers as other servers do, the contract of stores proves: it is run on this
one, on moto and on SeaweedFS. Like moto it looks at no signature, so that a proxy may change what it is sent.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from deltahub.stores.bucket import Bucket
from tests.s3_proxy import Answer, Exchange, proxied

BUCKET = "deltas"
_PAGE = 1000  # keys of one answer


@dataclass(frozen=True)
class _Object:
    data: bytes
    etag: str
    modified: float


@dataclass
class MemoryS3:
    """One bucket.

    Attributes:
        url: where it answers.
    """

    url: str = ""
    _objects: dict[str, _Object] = field(default_factory=dict)
    _uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bucket(self, **options: str) -> Bucket:
        """A place in it that no other test uses."""
        return Bucket(BUCKET, f"test/{uuid.uuid4().hex}", **{"endpoint": self.url, **options})

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._objects.clear()
            self._uploads.clear()

    def __call__(self, exchange: Exchange) -> Answer:
        """Answer one request."""
        parts = urlsplit(exchange.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in exchange.headers.items()}
        if bucket != BUCKET:
            return _error(404, "NoSuchBucket")
        with self._lock:
            if "uploads" in query or "uploadId" in query:
                return self._part(exchange.method, key, query, exchange.body)
            if not key:
                return self._list(query)
            act = {"PUT": self._put, "GET": self._get, "HEAD": self._get, "DELETE": self._delete}[exchange.method]
            status, more, data = act(key, headers, exchange.body)
        return status, more, b"" if exchange.method == "HEAD" else data

    def _put(self, key: str, headers: Mapping[str, str], body: bytes) -> Answer:
        there = self._objects.get(key)
        wanted = headers.get("if-match")
        if headers.get("if-none-match") == "*" and there:
            return _error(412, "PreconditionFailed")
        if wanted is not None and (there is None or there.etag != wanted):
            return _error(412, "PreconditionFailed") if there else _error(404, "NoSuchKey")
        if copied := headers.get("x-amz-copy-source"):
            return self._copy(unquote(copied).lstrip("/").removeprefix(f"{BUCKET}/"), key)
        return self._keep(key, body, hashlib.md5(body).hexdigest())

    def _copy(self, source: str, key: str) -> Answer:
        if source not in self._objects:
            return _error(404, "NoSuchKey")
        self._objects[key] = there = replace(self._objects[source], modified=time.time())
        return _xml(f"<CopyObjectResult><ETag>{escape(there.etag)}</ETag></CopyObjectResult>")

    def _keep(self, key: str, data: bytes, name: str) -> Answer:
        self._objects[key] = _Object(data, f'"{name}"', time.time())
        return 200, [("ETag", f'"{name}"')], b""

    def _get(self, key: str, headers: Mapping[str, str], _: bytes) -> Answer:
        there = self._objects.get(key)
        if there is None:
            return _error(404, "NoSuchKey")
        data, more = there.data, [("ETag", there.etag), ("Last-Modified", formatdate(there.modified, usegmt=True))]
        if not (asked := headers.get("range")):
            return 200, [*more, ("Content-Length", str(len(data)))], data
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
        if start >= len(data):
            return _error(416, "InvalidRange")
        more += [("Content-Range", f"bytes {start}-{end - 1}/{len(data)}"), ("Content-Length", str(end - start))]
        return 206, more, data[start:end]

    def _delete(self, key: str, *_: object) -> Answer:
        self._objects.pop(key, None)
        return 204, [], b""

    def _list(self, query: Mapping[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", query.get("start-after", ""))
        entries: dict[str, str] = {}  # as XML, by what the next page is asked for
        for key in sorted(key for key in self._objects if key.startswith(prefix)):
            folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                name = f"{prefix}{folder}{delimiter}"
                entries[name] = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            else:
                entries[key] = self._listed(key)
        page = list(itertools.islice(((name, text) for name, text in entries.items() if name > after), _PAGE + 1))
        more = len(page) > _PAGE
        text = "".join(entry for _, entry in page[:_PAGE])
        text += f"<KeyCount>{len(page[:_PAGE])}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            text += f"<NextContinuationToken>{escape(page[_PAGE - 1][0])}</NextContinuationToken>"
        return _xml(f"<ListBucketResult>{text}</ListBucketResult>")

    def _listed(self, key: str) -> str:
        there = self._objects[key]
        modified = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(there.modified))
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}.{int(there.modified % 1 * 1000):03}Z</LastModified>"
            f"<ETag>{escape(there.etag)}</ETag><Size>{len(there.data)}</Size></Contents>"
        )

    def _part(self, method: str, key: str, query: Mapping[str, str], body: bytes) -> Answer:
        """One step of an upload in parts."""
        if "uploads" in query:
            number = uuid.uuid4().hex
            self._uploads[number] = {}
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>")
        number = query["uploadId"]
        if number not in self._uploads:
            return _error(404, "NoSuchUpload")
        parts = self._uploads[number]
        if method == "PUT":
            parts[int(query["partNumber"])] = body
            return 200, [("ETag", f'"{hashlib.md5(body).hexdigest()}"')], b""
        del self._uploads[number]
        if method == "DELETE":
            return 204, [], b""
        chosen = [int(element.text or "") for element in ET.fromstring(body).iter() if _tag(element) == "PartNumber"]
        data = b"".join(parts[one] for one in chosen)
        _, headers, _ = self._keep(key, data, f"{hashlib.md5(data).hexdigest()}-{len(chosen)}")
        return _xml(
            f"<CompleteMultipartUploadResult><ETag>{escape(headers[0][1])}</ETag></CompleteMultipartUploadResult>"
        )


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(text: str, status: int = 200) -> Answer:
    return status, [("Content-Type", "application/xml")], text.encode()


def _error(status: int, code: str) -> Answer:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


@contextmanager
def memory_s3() -> Iterator[MemoryS3]:
    """A server that answers, in a thread."""
    server = MemoryS3()
    with proxied(server) as running:
        server.url = running.url
        yield server
