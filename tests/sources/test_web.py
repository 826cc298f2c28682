"""Links: whatever a web server does, what arrives is what was published, or nothing."""

from __future__ import annotations

import hashlib
import io
import tarfile
from urllib.parse import urlsplit

import pytest

from deltahub.cache.remembered import Meaning
from deltahub.checkpoint import checkpoint
from deltahub.errors import (
    CheckpointError,
    ConfigError,
    DeltaHubError,
    IntegrityError,
    NotFoundError,
    ReferenceSyntaxError,
    StorageError,
    UnreachableError,
)
from deltahub.hub.pull import bring
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.bundle import export_bundle
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.sources.partial import PARTIAL
from deltahub.sources.web import public_only
from deltahub.sources.web.client import Limits
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import content_of
from tests.sources.web_server import Handler, serving

WEIGHTS = checkpoint.WEIGHTS
FILES = (checkpoint.BACKBONE, checkpoint.CARD, checkpoint.CONFIG, WEIGHTS)
BIG = {"card": "# A delta\n" + "x" * 200_000}


def delta(folder) -> dict[str, bytes]:
    return {name: data for name, data in content_of(folder).items() if name in FILES}


@pytest.fixture
def bundle(tmp_path, new_checkpoint, site):
    """Writes a bundle of deltas into the site and gives its address."""

    def write(*names: str) -> str:
        registry = Registry(MemoryStore(), "team")
        for number, name in enumerate(names):
            folder = new_checkpoint(value=0.5 + number)
            publish(registry, Publication(Reference.parse(name), checkpoint.describe(folder), folder))
        export_bundle([(registry, Reference.parse(name)) for name in names], site.root / "deltas.tar")
        return f"{site.url}/deltas.tar"

    return write


# ----- what is behind a link -----


@pytest.mark.parametrize("ending", ["", "/", "/delta_config.json"])
def test_a_folder_behind_a_link_is_pulled_to_the_last_byte(web, published, site, ending):
    url = published()
    folder = web.pull(f"{url}{ending}")

    assert delta(folder) == content_of(site.root / "ner")
    assert checkpoint.describe(folder).digest == checkpoint.describe(site.root / "ner").digest


def test_a_folder_without_a_card_is_one_too(web, published, site):
    url = published()
    (site.root / "ner" / checkpoint.CARD).unlink()

    assert checkpoint.describe(web.pull(url)).digest == checkpoint.describe(site.root / "ner").digest


def test_a_query_goes_with_every_file_and_is_shown_nowhere(web, published, site):
    link = Link.parse(f"{published()}?key=hidden")
    found = web.resolve(link)

    assert all(path.endswith("?key=hidden") for path in site.paths())
    assert "hidden" not in f"{found.reference} {link}"
    (site.root / "ner" / checkpoint.CONFIG).write_text("{")
    with pytest.raises(CheckpointError) as caught:
        web.resolve(link)
    assert "hidden" not in str(caught.value)


def test_a_link_without_a_delta_says_where_it_was_looked_for(web, site):
    with pytest.raises(NotFoundError, match=rf"Looked in: {site.url}/nothing/delta_config\.json"):
        web.pull(f"{site.url}/nothing")
    with pytest.raises(NotFoundError, match=r"nothing\.tar"):
        web.pull(f"{site.url}/nothing.tar")


def test_the_url_of_a_hugging_face_repo_is_distinguished_from_a_folder(web):
    import responses

    with responses.RequestsMock() as server:
        server.get("https://huggingface.co/acme/ner/delta_config.json", status=404)
        with pytest.raises(NotFoundError, match=r"The nearest names are: hf:acme/ner"):
            web.pull("https://huggingface.co/acme/ner")


def test_a_bundle_with_one_delta_is_pulled_by_its_address(web, bundle, new_checkpoint):
    assert delta(web.pull(bundle("acme/ner"))) == content_of(new_checkpoint(value=0.5))


def test_a_bundle_that_was_pulled_and_is_the_same_is_not_fetched_again(web, bundle, site):
    url = bundle("acme/ner")
    web.pull(url)
    asked = len(site.requests)
    web.pull(url)

    ((_, headers),) = site.requests[asked:]
    assert headers["Range"] == "bytes=0-65535"


def test_of_a_bundle_with_several_one_must_be_named(web, bundle, new_checkpoint):
    url = bundle("acme/ner", "acme/nli")
    with pytest.raises(
        ReferenceSyntaxError, match=r"several deltas: acme/ner@v1, acme/nli@v1\. Name one.*tar#acme/ner@v1"
    ):
        web.pull(url)
    assert delta(web.pull(f"{url}#acme/nli")) == content_of(new_checkpoint(value=1.5))
    with pytest.raises(NotFoundError):
        web.pull(f"{url}#acme/other")


@pytest.mark.parametrize("of", ["delta", "file", "bundle"])
def test_a_pin_is_the_digest_of_the_delta_or_of_the_file_and_anything_else_is_refused(
    web, published, bundle, site, new_checkpoint, of
):
    if of == "bundle":
        url, file = bundle("acme/ner"), site.root / "deltas.tar"
    else:
        url, file = published(), site.root / "ner" / checkpoint.CONFIG
    pin = hashlib.sha256(file.read_bytes()).hexdigest()
    if of == "delta":
        pin = checkpoint.describe(site.root / "ner").digest.removeprefix("sha256:")

    assert checkpoint.is_checkpoint(web.pull(f"{url}#sha256={pin}"))
    with pytest.raises(IntegrityError, match=f"expected sha256:{'0' * 64}, found sha256:.*{pin}"):
        web.pull(f"{url}#sha256={'0' * 64}")


def test_a_link_with_the_digest_of_a_cached_delta_makes_no_request(web, published, site):
    url = published()
    found = web.resolve(Link.parse(url))
    web.pull(url)
    web.names.remember(Link.parse(url), Meaning(found.reference, found.digest, url))
    asked = len(site.requests)
    again = web.resolve(found.reference)

    assert again.digest == found.digest
    assert len(site.requests) == asked


@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "ftp://host/x",
        "https://host:port/x",
        "https://ho st/x",
        "https://host\\@other/x",
        "https://host/x#sha256=12",
        "https://host/x#a/b/c",
        "https://host/\n",
        "http:/host",
    ],
)
def test_an_invalid_link_is_refused_before_any_request(text):
    with pytest.raises(ReferenceSyntaxError):
        Link.parse(text)


# ----- damage -----


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_is_found(web, published, site, name):
    url, path = published(), site.root / "ner" / name
    data = path.read_bytes()
    before = checkpoint.describe(site.root / "ner").digest
    path.write_bytes(data[:-2] + b"~" + data[-1:])
    if name == checkpoint.CARD:  # nothing vouches for the card but the digest of the whole
        with pytest.raises(IntegrityError):
            web.pull(f"{url}#{before.replace(':', '=')}")
    else:
        with pytest.raises(DeltaHubError):
            web.pull(url)
    assert not list(web.cache.root.glob("deltas/*/*"))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_weights_of_another_length_are_found(web, published, site, change):
    url, path = published(), site.root / "ner" / WEIGHTS
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IntegrityError, match=r"delta\.safetensors"):
        web.pull(url)


def test_a_body_that_breaks_off_goes_on_where_it_was(web, published, site):
    url = published(**BIG)
    data = (site.root / "ner" / WEIGHTS).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    cut = lambda handler: handler.say(200, data, {"ETag": tag}, sent=100)  # noqa: E731
    site.answers(WEIGHTS, None, cut)  # the first request is for the header
    folder = web.pull(url)

    assert delta(folder) == content_of(site.root / "ner")
    headers = [headers for path, headers in site.requests if path.endswith(WEIGHTS)][-1]
    assert (headers["Range"], headers["If-Range"]) == ("bytes=100-", tag)
    assert len(web.pauses) == 1


@pytest.mark.parametrize("tag", [None, 'W/"weak"'], ids=["without an ETag", "with a weak one"])
def test_without_a_strong_etag_it_begins_anew(web, published, site, tag):
    url = published()
    data = (site.root / "ner" / WEIGHTS).read_bytes()
    headers = {"ETag": tag} if tag else {}
    site.answers(WEIGHTS, None, lambda handler: handler.say(200, data, headers, sent=100))
    web.pull(url)

    assert "Range" not in [headers for path, headers in site.requests if path.endswith(WEIGHTS)][-1]


@pytest.mark.parametrize(
    "second",
    [
        lambda handler: handler.file(ranges=False),
        lambda handler: handler.say(206, b"x" * 10, {"Content-Range": "bytes 0-9/280", "ETag": '"tag"'}),
        lambda handler: handler.say(206, b"x" * 10, {"ETag": '"tag"'}),
        lambda handler: handler.say(206, b"x" * 180, {"Content-Range": "bytes 100-279/280", "ETag": '"other"'}),
        lambda handler: handler.say(416, b""),
    ],
    ids=["Range ignored", "another part", "no Content-Range", "ETag changed", "no such part"],
)
def test_a_changed_file_is_downloaded_again_in_full(web, published, site, second):
    url = published()
    data = (site.root / "ner" / WEIGHTS).read_bytes()
    site.answers(WEIGHTS, None, lambda handler: handler.say(200, data, {"ETag": '"tag"'}, sent=100), second)

    assert delta(web.pull(url)) == content_of(site.root / "ner")


@pytest.mark.parametrize("ending", [checkpoint.CONFIG, WEIGHTS])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(web, published, site, ending):
    url = published()
    site.answers(ending, *[Handler.drip] * 4)
    with pytest.raises(UnreachableError, match="has not ended after 0 s"):
        web.pull(url, Limits(whole=0.2))


def test_a_failed_download_is_resumed_by_the_next(web, published, site):
    url = published()
    data = (site.root / "ner" / WEIGHTS).read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    site.answers(WEIGHTS, None, lambda handler: handler.say(200, data, {"ETag": tag}, sent=100))
    with pytest.raises(UnreachableError, match="it broke off: 100 of 280 bytes"):
        web.pull(url, Limits(tries=1))
    assert [path.stat().st_size for path in (web.cache.root / PARTIAL).iterdir()] == [100]
    assert not list(web.cache.root.glob("deltas/*/*"))

    assert delta(web.pull(url)) == content_of(site.root / "ner")
    assert site.requests[-1][1]["Range"] == "bytes=100-"
    assert not list((web.cache.root / PARTIAL).iterdir())


def test_a_bundle_goes_on_where_it_was_too(web, bundle, site):
    url = bundle("acme/ner")
    data = (site.root / "deltas.tar").read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    site.answers(".tar", None, lambda handler: handler.say(200, data, {"ETag": tag}, sent=1000))  # first for its index

    assert checkpoint.is_checkpoint(web.pull(url))
    assert site.requests[-1][1]["Range"] == "bytes=1000-"


# ----- tricks -----


def _tar(member: tarfile.TarInfo, data: bytes = b"") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("delta_config.json")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../../escaped"),
        tarfile.TarInfo("/escaped"),
        _link(tarfile.SYMTYPE),
        _link(tarfile.LNKTYPE),
        _link(tarfile.FIFOTYPE),
    ],
    ids=["upwards", "absolute", "symbolic link", "hard link", "fifo"],
)
def test_a_tar_that_is_no_bundle_leaves_nothing_anywhere(web, site, tmp_path, member):
    (site.root / "x.tar").write_bytes(_tar(member))
    before = {path for path in tmp_path.rglob("*") if web.cache.root not in path.parents}
    with pytest.raises(IntegrityError, match="is damaged: expected bundle-"):
        web.pull(f"{site.url}/x.tar")
    assert {path for path in tmp_path.rglob("*") if web.cache.root not in path.parents} - {web.cache.root} == before
    assert [path for path in web.cache.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("count", [0, 511, 512, 5000])
def test_a_bundle_that_was_cut_is_no_bundle(web, bundle, site, count):
    url, path = bundle("acme/ner"), site.root / "deltas.tar"
    path.write_bytes(path.read_bytes()[:count])
    with pytest.raises(IntegrityError):
        web.pull(url)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "..", "a\\b"])
def test_a_config_cannot_name_files_elsewhere(web, published, site, name):
    url, path = published(), site.root / "ner" / checkpoint.CONFIG
    path.write_text(path.read_text().replace("backbone.json", name.replace("\\", "\\\\")))
    with pytest.raises(ConfigError):
        web.pull(url)


# ----- too much -----


def test_a_delta_that_is_larger_than_may_be_taken_is_not_fetched(web, published, site):
    url = published()
    with pytest.raises(StorageError, match=r"DELTAHUB_MAX_FILE and DELTAHUB_MAX_DOWNLOAD to more"):
        web.pull(url, Limits(file=100))
    with pytest.raises(StorageError, match="may be taken"):
        web.pull(url, Limits(total=300))
    assert not any(path.endswith(WEIGHTS) for path in site.paths())


def test_a_bundle_that_is_larger_than_may_be_taken_is_given_up_by_its_length_or_on_the_way(web, bundle, site):
    url = bundle("acme/ner")
    with pytest.raises(StorageError, match=r"has 10,240 bytes or more, and 5,000 may be taken"):
        web.pull(url, Limits(file=5000))

    def endless(handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            handler.close_connection = True

    site.answers(".tar", endless)
    with pytest.raises(StorageError, match=r"and 5,000 may be taken"):
        web.pull(url, Limits(file=5000))
    assert not list(web.cache.root.rglob("*.tar"))


def test_a_config_without_end_is_given_up(web, published, site):
    url = published()
    site.answers(checkpoint.CONFIG, lambda handler: handler.say(200, b" " * (9 << 20)))
    with pytest.raises(StorageError, match="may be taken"):
        web.pull(url)


@pytest.mark.parametrize(("text", "size"), [("5000", 5000), ("3 MB", 3_000_000), ("1gb", 10**9), ("7B", 7)])
def test_the_environment_says_how_much_may_be_taken(monkeypatch, text, size):
    monkeypatch.setenv("DELTAHUB_MAX_FILE", text)
    assert Limits.read() == Limits(file=size)


def test_a_size_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("DELTAHUB_MAX_DOWNLOAD", "much")
    with pytest.raises(ConfigError, match="DELTAHUB_MAX_DOWNLOAD is 'much'; expected a number of bytes"):
        Limits.read()


# ----- busy servers, and redirects -----


def _to(place: str, status: int = 302):
    return lambda handler: handler.say(status, b"", {"Location": place})


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_after_as_long_as_it_says(web, published, site, status):
    url = published()
    site.answers(checkpoint.CONFIG, *[lambda handler: handler.say(status, b"", {"Retry-After": "7"})] * 2)

    assert checkpoint.is_checkpoint(web.pull(url))
    assert web.pauses == [7.0, 7.0]


def test_waits_grow_and_end(web, published, site):
    url = published()
    site.answers(checkpoint.CONFIG, *[lambda handler: handler.say(503)] * 6)
    with pytest.raises(UnreachableError, match=r"failed \(503\), after several tries too"):
        web.pull(url)
    assert web.pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "requires a login"), (403, "does not let you in"), (418, "in a browser")]
)
def test_a_refusal_is_one_sentence_and_is_not_asked_again(web, published, site, status, words):
    url = published()
    site.answers(checkpoint.CONFIG, lambda handler: handler.say(status))
    with pytest.raises(StorageError, match=words):
        web.pull(url)
    assert web.pauses == []


def test_a_server_that_is_not_there_is_out_of_reach(web, site):
    with serving(site.root) as gone:
        url = gone.url
    with pytest.raises(UnreachableError, match="no connection"):
        web.pull(f"{url}/ner")
    assert len(web.pauses) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(web, published, site, status):
    url = published()
    site.answers(f"moved/{checkpoint.CONFIG}", _to(f"{url}/{checkpoint.CONFIG}", status))
    site.answers(f"moved/{WEIGHTS}", _to(f"/ner/{WEIGHTS}", status), _to(f"/ner/{WEIGHTS}", status))
    site.answers(f"moved/{checkpoint.BACKBONE}", _to("../ner/backbone.json", status))
    site.answers(f"moved/{checkpoint.CARD}", _to("../ner/README.md", status))

    assert delta(web.pull(f"{site.url}/moved")) == content_of(site.root / "ner")


def test_redirects_in_a_circle_are_left(web, site):
    site.answers(checkpoint.CONFIG, *[_to("/a/delta_config.json")] * 50)
    with pytest.raises(UnreachableError, match="sends on more than 5 times"):
        web.pull(f"{site.url}/a")
    assert len(site.requests) == 6


@pytest.mark.parametrize("place", ["http://{host}/x", "ftp://{host}/x", "file:///etc/passwd", "gopher://{host}/"])
def test_a_secure_address_never_leads_to_one_that_is_not(web, place, monkeypatch):
    import responses

    with responses.RequestsMock() as server:
        server.get(
            "https://deltas.example/ner/delta_config.json",
            status=302,
            headers={"Location": place.format(host="deltas.example")},
        )
        with pytest.raises(UnreachableError, match="a secure address must not lead to one that is not"):
            web.pull("https://deltas.example/ner")


def test_a_link_on_a_public_server_never_leads_behind_the_firewall(web, published, site, monkeypatch, new_checkpoint):
    url = published()
    public = urlsplit(site.url).hostname
    monkeypatch.setattr(public_only, "is_public", lambda address: address == public)
    with serving(site.root, "127.0.0.2") as inner:
        site.answers(f"a/{checkpoint.CONFIG}", _to(f"{inner.url}/ner/{checkpoint.CONFIG}"))
        with pytest.raises(UnreachableError, match=r"leads from a public server to 127\.0\.0\.2, which is not public"):
            web.pull(f"{site.url}/a")
        assert inner.requests == []
    assert checkpoint.is_checkpoint(web.pull(url))
    with serving(site.root, "127.0.0.2") as inner:  # whoever starts behind it may stay there
        inner.answers(f"a/{checkpoint.CONFIG}", _to("/ner/delta_config.json"))
        with pytest.raises(NotFoundError):
            web.pull(f"{inner.url}/a")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:0a00:0001::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
    ],
)
def test_an_address_is_public_if_everybody_can_reach_it(address, public):
    assert public_only.is_public(address) is public


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("example.org", True),
        ("8.8.8.8", True),
        ("localhost", False),
        ("a.local", False),
        ("[::1]", False),
        ("intra", False),
        ("127.1", False),
        ("0x7f.1", False),
        ("2130706433", False),
    ],
)
def test_behind_a_proxy_the_name_of_a_host_tells(host, public):
    assert public_only.looks_public(host) is public


def test_through_a_proxy_a_public_link_leads_to_no_private_name(web, monkeypatch, site):
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    site.answers(checkpoint.CONFIG, _to("http://169.254.169.254/latest/meta-data"))
    with pytest.raises(UnreachableError, match="is not public"):
        web.pull("http://deltas.example/ner")
    assert [path for path, _ in site.requests] == ["http://deltas.example/ner/delta_config.json"]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda source: source.publish(None), "cannot be pushed to"),
        (lambda source: source.search(None), "cannot be searched"),
        (lambda source: source.document("acme/ner"), "has no history"),
        (lambda source: source.amend("acme/ner", None, None), "its delta cannot be changed"),
    ],
)
def test_a_link_can_only_be_pulled(web, call, why):
    with pytest.raises(
        ConfigError, match=rf"https://host/ner\?\.\.\. is a link to one delta, so .*{why}.*deltahub push"
    ):
        call(web.source(Link.parse("https://me:hidden@host/ner?key=hidden")))


def test_a_cached_delta_that_is_fetched_again_is_downloaded_once_for_all_its_files(web, bundle, site):
    link = Link.parse(bundle("acme/ner"))
    pulled = bring(web.resolve(link), web.cache)
    asked = len(site.requests)

    again = bring(web.resolve(link), web.cache, force=True)

    assert again == pulled
    assert len(pulled.manifest.files) > 2
    assert len(site.requests) - asked == 2  # the start of the bundle, and the bundle
