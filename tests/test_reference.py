"""References, names, versions, aliases and tags are read strictly, and written as they are read."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import string

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from deltahub.errors import ReferenceSyntaxError
from deltahub.link import Link
from deltahub.reference import (
    DeltaPath,
    Digest,
    Reference,
    as_delta_path,
    check_alias,
    check_name,
    check_tag,
    check_version,
    default_namespace,
    is_digest,
    is_version,
)
from deltahub.registry.commit_message import CommitDigest

ALNUM = string.ascii_letters + string.digits
DIGEST = "sha256:" + "3f9a51c0ffee" * 4


def accepted(check, text) -> bool:
    try:
        return check(text) == text
    except ReferenceSyntaxError:
        return False


names = st.text(f"{ALNUM}._-", min_size=1, max_size=12).filter(lambda text: accepted(check_name, text))
sources = st.from_regex(r"[a-z][a-z0-9-]{1,8}", fullmatch=True)
versions = st.one_of(
    st.integers(1, 999).map("v{}".format),
    st.text("0123456789abcdef", min_size=12, max_size=64).map("sha256:{}".format),
    names,
)


@given(names, names, st.none() | sources, st.none() | versions)
def test_every_reference_is_read_back_as_it_was_written(namespace, name, source, version):
    reference = Reference(DeltaPath(f"{namespace}/{name}"), source=source, version=version)

    assert Reference.parse(str(reference)) == reference


@given(st.text() | st.text(f"{ALNUM}._-/:@=", max_size=20))
@example("a/b@")
@example("@v1")
@example(":a/b")
@example("a/b/c")
def test_any_text_is_a_reference_that_reads_back_or_a_named_error(text):
    try:
        reference = Reference.parse(text)
    except ReferenceSyntaxError:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DeltaHub/sst2-t5-base", Reference(DeltaPath("DeltaHub/sst2-t5-base"))),
        ("local:DeltaHub/sst2@v3", Reference(DeltaPath("DeltaHub/sst2"), source="local", version="v3")),
        ("acme/ner@champion", Reference(DeltaPath("acme/ner"), version="champion")),
        (f"hf:acme/ner@{DIGEST}", Reference(DeltaPath("acme/ner"), source="hf", version=DIGEST)),
        ("ner", Reference(DeltaPath("DeltaHub/ner"))),
        ("local:ner@latest", Reference(DeltaPath("DeltaHub/ner"), source="local", version="latest")),
    ],
)
def test_a_reference_has_a_source_a_namespace_a_name_and_a_version(text, expected):
    assert Reference.parse(text) == expected


def test_the_environment_names_the_namespace_of_bare_names(monkeypatch):
    assert default_namespace() == "DeltaHub"
    monkeypatch.setenv("DELTAHUB_NAMESPACE", "acme")
    assert Reference.parse("ner").path == "acme/ner"


def test_a_bad_namespace_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("DELTAHUB_NAMESPACE", "../acme")
    with pytest.raises(ReferenceSyntaxError, match=r"'\.\./acme' cannot be a namespace"):
        Reference.parse("ner")


def test_the_path_of_a_delta_has_a_namespace_and_a_name():
    path = DeltaPath("acme/ner")

    assert (path, path.namespace, path.name) == ("acme/ner", "acme", "ner")
    assert as_delta_path("acme/ner") == path


@pytest.mark.parametrize("text", ["", "ner", "/", "acme/", "/ner", "acme/ner/large", "acme/ner@v1", "local:acme/ner"])
def test_a_text_that_is_not_one_namespace_and_one_name_is_not_a_path(text):
    assert not accepted(DeltaPath, text)
    assert as_delta_path(text) is None


def test_the_same_delta_at_another_version():
    assert str(Reference.parse("local:a/b@v1").at("v2")) == "local:a/b@v2"
    assert str(Reference.parse("local:a/b@v1").at(None)) == "local:a/b"


BAD_NAMES = [
    "",
    ".",
    "..",
    "a..b",
    "../a",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:",
    ".hidden",
    "-rf",
    "_a",
    "a-",
    "a.",
    "a--b",
    "a b",
    "a\n",
    "a\x00b",
    "a\u202eb",
    "a" * 97,
    "x.git",
    "x.GIT",
    "x.ipynb",
    "x.json",
    "x.lock",
    "\u0430cme",  # Cyrillic a
    "\uff41cme",  # full-width a
    "caf\u00e9",
    "\u0661",  # Arabic-Indic one
    "a\u2024b",  # one dot leader
    "a\u2215b",  # division slash
]


@pytest.mark.parametrize("text", BAD_NAMES, ids=ascii)
def test_an_invalid_name_is_refused_in_every_position(text):
    for check in (check_name, check_alias, check_version):
        assert not accepted(check, text) or (text == "a/b" and check is not check_name)
    for reference in (f"{text}/name", f"namespace/{text}", f"namespace/name@{text}", f"local:{text}/name"):
        if reference not in ("namespace/a/b", "a/b/name", "namespace/name@a/b"):
            assert not accepted(lambda value: str(Reference.parse(value)), reference)


@pytest.mark.parametrize("mark", ["release/1.0", "model#prod", "ner@1.0.0", "1.0+cpu", "v1.0", "release/v1", "a=b,c"])
def test_an_alias_is_called_as_a_git_tag_and_named_in_a_reference(mark):
    assert check_alias(mark) == check_version(mark) == mark
    for source in (None, "hf", "/mnt/deltas"):
        reference = Reference(DeltaPath("acme/ner"), source=source, version=mark)
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "mark", ["/a", "a/", "a//b", "a/.b", "a/b.lock", "a/../b", "a b", "a:b", "a~1", "a^", "a?", "refs/x"]
)
def test_an_invalid_git_tag_is_not_an_alias(mark):
    assert not accepted(check_alias, mark)


@pytest.mark.slow
@given(st.text(min_size=1) | st.text(f"{ALNUM}._-/\\\0\n", min_size=1))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_a_name_is_plain_ascii_without_separators_or_controls(text):
    assume(accepted(check_name, text))

    assert text.isascii()
    assert set(text) <= set(f"{ALNUM}._-")
    assert ".." not in text
    assert len(text) <= 96


@given(st.text(min_size=1) | st.text(f"{ALNUM}._-/=+: ", min_size=1))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_a_tag_is_plain_ascii_without_controls_or_dots_that_climb(text):
    assume(accepted(check_tag, text))

    assert text.isascii()
    assert text.isprintable()
    assert ".." not in text
    assert text.count("=") <= 1


@given(names, st.characters(min_codepoint=128), st.data())
def test_one_strange_character_spoils_a_name_a_tag_and_an_alias(name, strange, data):
    place = data.draw(st.integers(0, len(name)))
    text = name[:place] + strange + name[place:]

    for check in (check_name, check_tag, check_alias, check_version):
        assert not accepted(check, text)
    assert not accepted(check_tag, f"task={text}")


def test_a_look_alike_is_named_by_its_code_point():
    with pytest.raises(ReferenceSyntaxError) as caught:
        check_name("\u0430cme")
    assert "expected up to 96 letters, digits" in str(caught.value)
    assert "U+0430), which is not an ASCII letter, though it may look like one" in str(caught.value)


@pytest.mark.parametrize("text", ["sst2", "task=sst2", "a/b", "v1.2", "lang=en-US", "note=two words", "metric=f1:0.9"])
def test_a_label_or_a_pair_is_a_tag(text):
    assert check_tag(text) == text


@pytest.mark.parametrize(
    "text", ["", "=", "=sst2", "task=", "a=b=c", "a b", "../a", "/a", "a\n", "a=\n", "-a", "sst2-", "a=b-", "a" * 129]
)
def test_a_bad_tag_is_refused_with_the_rule(text):
    with pytest.raises(ReferenceSyntaxError, match=r"cannot be a (tag|value of the tag)|'\.\.' is reserved"):
        check_tag(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("v1", "are version numbers"),
        ("v0", "are version numbers"),
        ("v12", "are version numbers"),
        ("sha256:abc", "are reserved"),
        ("sha256", "are reserved"),
        ("latest", "are reserved"),
    ],
)
def test_reserved_words_cannot_be_aliases(text, why):
    with pytest.raises(ReferenceSyntaxError, match=why):
        check_alias(text)


@pytest.mark.parametrize("text", ["champion", "prod-2", "v", "version1"])
def test_other_words_can(text):
    assert check_alias(text) == text


@pytest.mark.parametrize("text", ["sha256:", "sha256:abc", f"sha256:{'a' * 65}", "sha256:ABCDEF012345", "sha256:xyz"])
def test_an_invalid_digest_error_says_what_a_digest_looks_like(text):
    with pytest.raises(ReferenceSyntaxError, match="expected 'sha256:' and 12 to 64 of the digits 0-9 a-f"):
        check_version(text)


@pytest.mark.parametrize("source", ["", "L", "Local", "x" * 33, "a_b", "1a", "a:b", "\u0430b"])
def test_a_bad_source_is_refused(source):
    with pytest.raises(
        ReferenceSyntaxError, match="cannot be a source: expected 2 to 32 lower-case letters, digits and '-'"
    ):
        Reference.parse(f"{source}:a/b")


def test_versions_and_digests_are_distinguished():
    assert (is_version("v3"), is_version("v0"), is_version("champion"), is_version("v3\n")) == (
        True,
        False,
        False,
        False,
    )
    assert (is_digest(DIGEST), is_digest("sha256:abc"), is_digest("v3")) == (True, False, False)


def test_a_digest_is_its_text_and_knows_its_digits():
    digest = Digest.of(b"x")
    assert (digest, digest.hex) == (f"sha256:{digest.hex}", hashlib.sha256(b"x").hexdigest())
    assert digest.short == f"sha256:{digest.hex[:12]}"
    assert {digest: 1}[f"sha256:{digest.hex}"] == 1
    assert json.dumps([digest]) == f'["{digest}"]'
    for copied in (pickle.loads(pickle.dumps(digest)), copy.deepcopy(digest), Digest.of_hex(digest.hex)):
        assert (type(copied), copied) == (Digest, digest)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "a" * 64, f"sha256:{'a' * 63}", f"sha256:{'A' * 64}", f"sha256:{'a' * 64}\n"]
)
def test_a_text_that_is_not_a_whole_digest_is_refused(text):
    with pytest.raises(ReferenceSyntaxError, match="expected 'sha256:' and 64 of the digits 0-9 a-f"):
        Digest(text)


def test_the_placeholder_for_a_digest_is_copied_unchanged():
    digest = CommitDigest("a" * 40)
    assert [copy.deepcopy(digest), pickle.loads(pickle.dumps(digest))] == [digest, digest] == [f"commit:{'a' * 40}"] * 2


def test_only_a_name_without_a_source_is_searched_for():
    name = Reference.parse("acme/ner@v2")

    assert name.unplaced == name
    assert Reference.parse("team:acme/ner").unplaced is None
    assert Link.parse("https://host/bundle.tar#acme/ner").unplaced is None


def test_a_link_is_remembered_by_its_whole_address_without_showing_its_secrets():
    links = [Link.parse(f"https://host/ner?key={key}") for key in ("hidden1", "hidden2")]

    assert links[0].cache_key != links[1].cache_key
    assert not any(key in links[0].cache_key for key in ("hidden1", "hidden2"))
