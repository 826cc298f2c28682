"""A stand-in for Google Cloud Storage: its XML interface as far as a store uses it, with generations and their conditions.

Nothing that could be installed speaks this interface, so it is written from Google's description and shows that the store keeps to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "deltas"
ACCOUNT = json.dumps({"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""})


class _Bucket:
    """The objects, each with its generation, and the parts of unfinished uploads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.generation = 1_700_000_000_000_000

    def put(self, key: str, data: bytes, condition: str | None) -> int | None:
        """Store an object and return its generation; None if the condition does not hold."""
        with self.lock:
            if condition is not None and int(condition) != self.objects.get(key, (b"", 0))[1]:
                return None
            self.generation += 1
            self.objects[key] = (data, self.generation)
            return self.generation


def _handler(bucket: _Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:  # type: ignore[override]
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def fail(self, status: int, code: str) -> None:
            self.answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())

        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if name != BUCKET:
                self.fail(404, "NoSuchBucket")
            elif not key:
                self.list(query)
            elif self.command == "POST":
                self.multipart(key, query)
            elif self.command == "PUT" and "uploadId" in query:
                bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
                self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
            elif self.command == "PUT":
                self.stored(bucket.put(key, body, self.headers.get("x-goog-if-generation-match")), body)
            elif self.command == "DELETE":
                self.answer(204) if bucket.objects.pop(key, None) else self.fail(404, "NoSuchKey")
            elif key not in bucket.objects:
                self.fail(404, "NoSuchKey")
            else:
                self.read(*bucket.objects[key])

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815  (http.server's names)

        def stored(self, generation: int | None, body: bytes) -> None:
            if generation is None:
                self.fail(412, "PreconditionFailed")
            else:
                etag = f'"{hashlib.md5(body).hexdigest()}"'
                self.answer(200, ETag=etag, x_goog_generation=str(generation))

        def read(self, data: bytes, generation: int) -> None:
            headers = {
                "ETag": f'"{hashlib.md5(data).hexdigest()}"',
                "x_goog_generation": str(generation),
                "Last_Modified": formatdate(generation / 1e6, usegmt=True),
            }
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if not asked:
                self.answer(200, data, **headers)
                return
            start, _, end = asked.partition("-")
            first, last = int(start), min(int(end or len(data)), len(data) - 1)
            self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)

        def multipart(self, key: str, query: dict[str, str]) -> None:
            if "uploads" in query:
                with bucket.lock:
                    upload = str(len(bucket.uploads) + 1)
                    bucket.uploads[upload] = {}
                document = (
                    f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                )
                self.answer(200, document.encode())
                return
            parts = bucket.uploads.pop(query["uploadId"])
            data = b"".join(parts[number] for number in sorted(parts))
            generation = bucket.put(key, data, None)
            etag = f"<CompleteMultipartUploadResult><ETag>{hashlib.md5(data).hexdigest()}</ETag></CompleteMultipartUploadResult>"
            self.answer(200, etag.encode(), x_goog_generation=str(generation))

        def list(self, query: dict[str, str]) -> None:
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
            files, folders = [], set()
            for key in sorted(key for key in bucket.objects if key.startswith(prefix)):
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest[: rest.index(delimiter) + 1])
                else:
                    files.append(key)
            contents = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
                f"<ETag>{bucket.objects[key][1]}</ETag><Size>{len(bucket.objects[key][0])}</Size></Contents>"
                for key in files
            )
            common = "".join(
                f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)
            )
            self.answer(200, f"<ListBucketResult>{contents}{common}</ListBucketResult>".encode())

    return Handler


@contextlib.contextmanager
def google_server() -> Iterator[str]:
    """Yield the URL of a server with one bucket."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(_Bucket()))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
