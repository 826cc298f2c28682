"""Where in which service: addresses, the environment, and the package that speaks to it."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import pytest

from deltahub.errors import ConfigError, StorageError
from deltahub.stores.bucket import Bucket, Patience
from deltahub.stores.bucket_clients import connect
from deltahub.stores.bucket_store import BucketStore
from tests.s3_servers import QUICK


def test_an_address_is_a_bucket_and_a_prefix():
    assert Bucket.parse("s3://deltas/team/a/") == Bucket("deltas", "team/a")
    assert Bucket.parse("s3://deltas") == Bucket.parse("s3://deltas/") == Bucket("deltas", "")
    assert (
        Bucket.parse("s3://deltas", endpoint="https://example.org/storage/s3").server
        == "https://example.org/storage/s3"
    )
    there = Bucket.parse("s3://deltas", endpoint="https://s3.example.org/", region="eu-west-1", profile="work")
    assert there == Bucket("deltas", "", "https://s3.example.org", "eu-west-1", "work")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://De", "s3://Deltas", "s3://deltas/a b", "s3://deltas/../x", "s3://deltas/a//b", "deltas"],
)
def test_an_invalid_address_is_refused(url):
    with pytest.raises(ConfigError, match=r"is not a location in a bucket: expected s3://bucket/prefix"):
        Bucket.parse(url)


def test_the_scheme_of_an_address_tells_the_service():
    google, azure = Bucket.parse("gs://the_deltas/team"), Bucket.parse("az://deltas")
    assert (google.url, google.service.title) == ("gs://the_deltas/team", "Google Cloud Storage")
    assert (azure.url, azure.service.title) == ("az://deltas", "Azure Blob Storage")
    with pytest.raises(ConfigError, match="expected az://bucket/prefix, the bucket of 3 to 63 lower-case letters"):
        Bucket.parse("az://the_deltas")
    with pytest.raises(ConfigError, match="profile is for buckets in S3, and az://deltas is in Azure Blob Storage"):
        Bucket.parse("az://deltas", profile="work")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "secret_access_key=1",
            "'secret_access_key' is not an option of a bucket in S3: expected NAME=VALUE with one of",
        ),
        ("sse_kms_key_id", "'sse_kms_key_id' is not an option of a bucket in S3"),
        ("sse_kms_key_id=a\r\nX-Other: b", "The option sse_kms_key_id has a value that cannot be used"),
    ],
)
def test_an_option_that_is_unknown_or_could_hold_a_secret_is_refused(option, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Bucket.parse("s3://deltas", options=[option])
    assert "\n" not in str(caught.value)


def test_options_reach_the_client():
    options = ["server_side_encryption=aws:kms", "sse_kms_key_id=arn:aws:kms:eu-west-1:1:key/2", "skip_signature=true"]
    for client in connect(Bucket.parse("s3://deltas", options=options), Patience()):
        assert client.config["server_side_encryption"] == "aws:kms"
        assert client.config["sse_kms_key_id"] == "arn:aws:kms:eu-west-1:1:key/2"
        assert client.config["skip_signature"]


def test_a_service_without_an_account_tells_how_to_sign_in(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        ConfigError, match=r"az://deltas cannot be used: .*Account must be specified\. Set AZURE_STORAGE_ACC"
    ):
        BucketStore(Bucket.parse("az://deltas")).read("key")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/not/there.json")
    with pytest.raises(
        ConfigError, match=r"gs://deltas cannot be used: .*not/there\.json.*Set GOOGLE_APPLICATION_CRED"
    ):
        BucketStore(Bucket.parse("gs://deltas")).read("key")


def test_a_bucket_that_does_not_exist_is_named(google):
    with pytest.raises(StorageError, match=r"404 NoSuchBucket\)\. The bucket 'nowhere' does not exist there"):
        BucketStore(replace(google, name="nowhere"), QUICK).swap("key", b"", None)


@pytest.mark.parametrize("endpoint", ["s3.example.org", "ftp://x", "https://x/?y", "https://"])
def test_an_invalid_server_is_refused(endpoint):
    with pytest.raises(ConfigError, match="is not the address of a server"):
        Bucket.parse("s3://deltas", endpoint=endpoint)


@pytest.mark.parametrize(
    ("url", "endpoint"), [("s3://KEY:secret@deltas/x", None), ("s3://deltas", "https://KEY:secret@s3.example.org")]
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url, endpoint):
    with pytest.raises(ConfigError, match="must hold no user or secret") as caught:
        Bucket.parse(url, endpoint=endpoint)
    assert "secret@" not in str(caught.value)


def test_human_output_names_the_server_too(monkeypatch):
    assert Bucket("deltas", "team").url == "s3://deltas/team"
    assert Bucket("deltas", "", "http://here:1").url == "s3://deltas at http://here:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://there:1")
    assert Bucket("deltas", "team").url == "s3://deltas/team at http://there:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://nearer:1")
    assert Bucket("deltas", "team").url == "s3://deltas/team at http://nearer:1"


def test_registry_options_take_precedence_over_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://there:1")
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    for client in connect(Bucket("deltas", "team", "http://here:1", "eu-west-1"), Patience()):
        assert client.prefix == "team"
        assert client.config["endpoint_url_s3"] == "http://here:1"
        assert client.config["region"] == "eu-west-1"
        assert client.config["conditional_put"] == "etag"


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    for module in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)
    store = BucketStore(Bucket("deltas"))
    for call in (
        lambda: store.read("key"),
        lambda: store.read_tagged("key"),
        lambda: store.fetch("key", tmp_path / "copy"),
        lambda: list(store.keys("refs/")),
        lambda: store.create({hashlib.sha256(b"").hexdigest(): b""}),
        lambda: store.swap("key", b"", None),
        lambda: store.delete("key"),
    ):
        with pytest.raises(
            ConfigError, match=r"s3://deltas needs the package obstore.*pip install 'deltahub\[buckets\]'"
        ):
            call()
