"""What goes wrong between a user and a hub: nothing is half done, and a sentence says what to do."""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from deltahub.errors import (
    ConfigError,
    ConflictError,
    DeltaHubError,
    IntegrityError,
    NotFoundError,
    StorageError,
    UnreachableError,
)
from deltahub.hub.pull import Transfer
from deltahub.registry.amend import Amendment
from deltahub.registry.search.conditions import Search
from deltahub.sources.huggingface import HuggingFace, download
from deltahub.sources.huggingface.calls import retry_after
from tests import s3_proxy
from tests.checkpoints import content_of
from tests.sources.huggingface.test_push_and_pull import api, delta_files, ref
from tests.sources.web_server import serving

pytestmark = pytest.mark.slow  # a server that fails in every way


def answer(status, said="", code="", **headers):
    """A fault: the hub answers so."""
    found = [(name.replace("_", "-"), value) for name, value in headers.items()]
    found += [("X-Error-Code", code)] if code else []
    found += [("X-Error-Message", said)] if said else []
    return lambda exchange: exchange.respond(status, found, b"{}")


def flipped(exchange):
    """A fault: the right number of bytes, and one of them another."""
    status, headers, body = exchange.forward()
    exchange.respond(status, headers, body[:-1] + bytes([body[-1] ^ 1]))


def short(exchange):
    """A fault: the end is missing, and the length says nothing of it."""
    status, headers, body = exchange.forward()
    exchange.respond(status, headers, body[:-1])


def long(exchange):
    """A fault: there is no end of it."""
    status, headers, body = exchange.forward()
    exchange.respond(status, headers, body * 1000)


@pytest.mark.parametrize("fault", [flipped, short, long])
@pytest.mark.parametrize("name", ["delta.safetensors", "backbone.json", "delta_config.json"])
def test_bytes_that_were_not_pushed_are_refused_and_nothing_is_cached(
    user, proxy, repo, checkpoint_folder, fault, name
):
    pushed = user().push(checkpoint_folder, f"hf:{repo}")
    hub = user()
    proxy.breaks(fault, method="GET", words=name, times=None)
    with pytest.raises(IntegrityError, match=f"{name} of {pushed.reference} in hf"):
        hub.pull(ref(repo))
    assert not (hub.cache.root / "deltas").exists()

    proxy.rules.clear()
    assert hub.pull(ref(repo)).digest == pushed.digest


@pytest.mark.parametrize("fault", [flipped, short, long])
def test_a_manifest_that_was_damaged_on_its_way_is_not_believed(user, proxy, repo, checkpoint_folder, fault):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.breaks(fault, method="GET", words="manifest.json", times=None)
    with pytest.raises(IntegrityError, match=f"manifest.json of {repo} in hf .* It was damaged on its way"):
        user().pull(ref(repo))


@pytest.mark.parametrize("name", ["manifest.json", "README.md", "delta.safetensors"])
def test_a_download_that_breaks_off_goes_on(user, proxy, repo, checkpoint_folder, name, pauses):
    pushed = user().push(checkpoint_folder, f"hf:{repo}")
    hub = user()
    proxy.breaks(s3_proxy.cut(3), method="GET", words=name, times=2)
    seen: list[int] = []
    pulled = hub.pull(ref(repo), transfer=Transfer(progress=seen.append))

    assert delta_files(pulled.folder) == content_of(checkpoint_folder)
    assert sum(seen) == pushed.size
    assert pauses == [1, 2]


def test_it_goes_on_where_it_was(user, proxy, repo, checkpoint_folder):
    user().push(checkpoint_folder, f"hf:{repo}")
    asked = []

    def watched(exchange):
        asked.append({name.lower(): value for name, value in exchange.headers.items()}.get("range"))
        exchange.respond(*exchange.forward())

    proxy.breaks(s3_proxy.cut(7), method="GET", words="delta.safetensors")
    proxy.breaks(watched, method="GET", words="delta.safetensors")
    user().pull(ref(repo))
    assert asked == ["bytes=7-"]


@pytest.mark.parametrize("held", ["nothing", "start", "whole"])
def test_an_interrupted_pull_goes_on_where_it_was(user, proxy, repo, checkpoint_folder, tmp_path, held):
    user().push(checkpoint_folder, f"hf:{repo}")
    data = (checkpoint_folder / "delta.safetensors").read_bytes()
    kept = tmp_path / "partial"
    kept.mkdir()
    part = kept / f"{hashlib.sha256(data).hexdigest()}.part"
    part.write_bytes({"nothing": b"", "start": data[:7], "whole": data}[held])
    asked = []

    def watched(exchange):
        asked.append({name.lower(): value for name, value in exchange.headers.items()}.get("range"))
        exchange.respond(*exchange.forward())

    proxy.breaks(watched, method="GET", words="delta.safetensors")
    hub, seen = user(kept=kept), []
    pulled = hub.pull(ref(repo), transfer=Transfer(progress=seen.append))
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)
    assert asked == {"nothing": [None], "start": ["bytes=7-"], "whole": []}[held]
    assert sum(seen) == sum(map(len, content_of(checkpoint_folder).values()))
    assert list(kept.iterdir()) == []


def test_an_interrupted_pull_keeps_its_data_and_checks_it_when_resumed(
    user, proxy, repo, checkpoint_folder, tmp_path, monkeypatch
):
    user().push(checkpoint_folder, f"hf:{repo}")
    data = (checkpoint_folder / "delta.safetensors").read_bytes()
    kept = tmp_path / "partial"
    add, stopped = download._Copy.add, user(kept=kept)

    def stop(copy, chunk):
        if copy.size != len(data):
            return add(copy, chunk)
        add(copy, chunk[: len(chunk) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download._Copy, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            stopped.pull(ref(repo))
    part = kept / f"{hashlib.sha256(data).hexdigest()}.part"
    assert part.read_bytes() == data[: len(data) // 2]

    part.write_bytes(bytes(len(data) // 2))
    assert delta_files(user(kept=kept).pull(ref(repo)).folder) == content_of(checkpoint_folder)
    assert not part.exists()


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({"ratelimit": '"api";r=0;t=55'}, [56, 56]),
        ({"Retry_After": "30"}, [30, 30]),
        ({"Retry_After": "0"}, [1, 1]),
        ({"ratelimit": '"api";r=3;t=55', "Retry_After": "7"}, [7, 7]),
        ({}, [1, 2]),
    ],
)
def test_a_hub_that_asks_to_wait_is_waited_for_with_a_message(
    user, proxy, repo, checkpoint_folder, pauses, caplog, headers, waits
):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.breaks(answer(429, **headers), method="GET", words="manifest.json", times=2)
    with caplog.at_level(logging.WARNING, "deltahub"):
        user().pull(ref(repo))

    assert pauses == waits
    said = [record.message for record in caplog.records if record.name == "deltahub"]
    assert said[0].startswith(f"Looking up {repo} waits {waits[0]} s for hf ({proxy.url}): it answered 429")


def test_a_commit_is_waited_for_too_and_made_once(hub, proxy, repo, new_checkpoint, pauses):
    hub.push(new_checkpoint(), f"hf:{repo}")
    commits = len(api(hub).list_repo_commits(repo))
    proxy.breaks(answer(429, Retry_After="9"), method="POST", words="/commit/")
    hub.push(new_checkpoint(value=0.7), f"hf:{repo}")

    assert pauses == [9]
    assert len(api(hub).list_repo_commits(repo)) == commits + 1


def test_a_hub_that_never_has_time_is_given_up_after_a_quarter_of_an_hour(hub, proxy, repo, pauses):
    proxy.breaks(answer(429, Retry_After="290"), method="GET", times=None)
    with pytest.raises(StorageError, match=r"\(429\)\. It takes no more requests for now\. Repeat later"):
        hub.pull(ref(repo))
    assert pauses == [290, 290, 290]


@pytest.mark.parametrize("fault", [answer(503), answer(500), s3_proxy.reset], ids=["503", "500", "reset"])
def test_a_hub_that_gives_no_answer_is_unreachable(hub, proxy, repo, pauses, fault):
    proxy.breaks(fault, method="GET", times=None)
    with pytest.raises(UnreachableError, match=rf"Looking up {repo} failed in hf \({proxy.url}\)"):
        hub.pull(ref(repo))
    assert pauses == [1, 2, 4, 8]


def test_an_unreachable_hub_fails_fast(user, repo, pauses):
    with pytest.raises(UnreachableError, match=f"Looking up {repo} failed in hf"):
        user(endpoint="http://127.0.0.1:9").pull(ref(repo))
    assert pauses == [1]


def test_listing_an_unreachable_hub_fails_fast(user, pauses, caplog):
    with pytest.raises(UnreachableError, match="Listing deltas failed in hf"):
        user(endpoint="http://127.0.0.1:9").search(Search(), "hf")
    assert pauses == [1]
    assert [record.name for record in caplog.records] == ["deltahub"]


@pytest.mark.parametrize("page", [b"<html>Welcome</html>", b'{"error": "no"}', b'["a", "b"]'])
def test_a_list_of_something_else_than_a_hub_is_a_sentence(user, proxy, page):
    proxy.breaks(lambda exchange: exchange.respond(200, [], page), method="GET", words="/api/models")
    with pytest.raises(
        ConfigError, match=r"does not answer with a list of repos, so it is not a hub .* Check its address"
    ):
        user().search(Search(), "hf")


def test_a_hub_of_its_own_is_sent_the_token_of_its_own_variable(user, proxy, repo, new_checkpoint, token, monkeypatch):
    hub = user(token=None, token_variable="DELTAHUB_TOKEN_TEAM")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DeltaHubError, match="set DELTAHUB_TOKEN_TEAM"):
        hub.push(new_checkpoint(), f"hf:{repo}")
    monkeypatch.setenv("DELTAHUB_TOKEN_TEAM", token)
    assert hub.push(new_checkpoint(), f"hf:{repo}").new


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (answer(404, code="RepoNotFound"), NotFoundError, "asked with your token"),
        (answer(401, code="RepoNotFound"), NotFoundError, "asked with your token"),
        (answer(401, "Invalid credentials in Authorization header"), StorageError, "The token is not known there"),
        (answer(403, "Not yours"), StorageError, r"\(403: Not yours\)\. This token lacks the permission for that"),
        (answer(403, code="GatedRepo"), StorageError, "Accept its conditions on its page, and"),
        (answer(404), StorageError, r"\(404\)\. Check the name and the address of the source"),
        (answer(200), StorageError, "did not say which commit its answer is from"),
    ],
)
def test_a_refusal_says_how_to_be_let_in(hub, proxy, repo, fault, kind, sentence, pauses):
    proxy.breaks(fault, method="GET", words="/resolve/", times=None)
    with pytest.raises(kind, match=sentence):
        hub.pull(ref(repo))
    assert pauses == []


def test_a_missing_write_permission_is_reported_and_nothing_is_created(user, proxy, repo, checkpoint_folder):
    hub = user(token=False)
    with pytest.raises(StorageError, match="It requires a token: log in with `hf auth login`, or set HF_TOKEN"):
        hub.push(checkpoint_folder, f"hf:{repo}")
    with pytest.raises(NotFoundError):
        user().pull(ref(repo))


def test_a_pull_without_a_token_suggests_to_log_in(user, proxy, repo, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    hub = user(token=None)
    with pytest.raises(NotFoundError, match="asked without a token: if it is private, log in with `hf auth login`"):
        hub.pull(ref(repo))


def test_a_card_the_hub_rejects_is_reported_before_anything_is_sent(hub, proxy, repo, checkpoint_folder):
    body = b'{"errors": [{"message": "license must be one of theirs"}], "warnings": []}'
    proxy.breaks(
        lambda exchange: exchange.respond(400, [("Content-Type", "application/json")], body),
        method="POST",
        words="validate-yaml",
    )
    with pytest.raises(ConfigError, match=r"front matter(?s:.*)license must be one of theirs"):
        hub.push(checkpoint_folder, f"hf:{repo}")
    assert not [path for method, path in proxy.requests if "/commit/" in path]


def test_a_commit_whose_answer_is_lost_is_found_and_not_made_again(hub, proxy, repo, new_checkpoint):
    hub.push(new_checkpoint(), f"hf:{repo}")
    commits = len(api(hub).list_repo_commits(repo))
    proxy.breaks(s3_proxy.lose, method="POST", words="/commit/")
    pushed = hub.push(new_checkpoint(value=0.7), f"hf:{repo}", aliases=["champion"])

    assert len(api(hub).list_repo_commits(repo)) == commits + 1
    assert hub.resolve(ref(repo, "champion")).digest == hub.resolve(ref(repo, "v2")).digest == pushed.digest


def test_a_push_that_loses_a_race_builds_on_the_winners_commit(user, proxy, repo, new_checkpoint):
    hub, other = user(), user()
    hub.push(new_checkpoint(), f"hf:{repo}")
    folder = new_checkpoint(value=0.8)

    def overtaken(exchange):
        proxy.rules.clear()
        other.push(folder, f"hf:{repo}")
        exchange.respond(*exchange.forward())

    proxy.breaks(overtaken, method="POST", words="/commit/")
    pushed = hub.push(new_checkpoint(value=0.7), f"hf:{repo}", aliases=["mine"])

    versions = hub.document(ref(repo))[1].versions
    assert [it.digest for it in versions.values()][-1] == pushed.digest
    assert len({it.digest for it in versions.values()}) == 3
    assert hub.resolve(ref(repo, "mine")).digest == pushed.digest


def test_losing_every_race_is_an_error(hub, proxy, repo, new_checkpoint):
    hub.push(new_checkpoint(), f"hf:{repo}")
    proxy.breaks(answer(412, "A commit has happened since"), method="POST", words="/commit/", times=None)
    with pytest.raises(ConflictError, match=f"hf:{repo}:"):
        hub.push(new_checkpoint(value=0.7), f"hf:{repo}")


def test_a_push_cut_short_before_its_version_was_set_is_finished_by_the_next(hub, proxy, repo, checkpoint_folder):
    proxy.breaks(answer(403, "Not now"), method="POST", words="/tag/")
    with pytest.raises(StorageError, match="Not now"):
        hub.push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])
    commits = len(api(hub).list_repo_commits(repo))
    hub.push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])

    assert len(api(hub).list_repo_commits(repo)) == commits
    assert hub.resolve(ref(repo, "v1")).reference == hub.resolve(ref(repo, "champion")).reference


def test_a_file_that_changes_during_the_push_is_not_published(hub, repo, checkpoint_folder, proxy):
    def changes(exchange):
        (checkpoint_folder / "delta.safetensors").write_bytes(b"something else")
        exchange.respond(*exchange.forward())

    proxy.breaks(changes, method="GET", words="refs")
    with pytest.raises(IntegrityError, match="It changed while it was published; repeat"):
        hub.push(checkpoint_folder, f"hf:{repo}")
    assert not [path for method, path in proxy.requests if "/commit/" in path]


def test_a_password_in_the_address_is_in_no_message(user, repo):
    hub = user(endpoint="http://ada:secret@127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"in hf \(http://127\.0\.0\.1:9\)") as caught:
        hub.pull(ref(repo))
    assert "secret" not in str(caught.value)


def test_a_server_may_say_until_when_to_wait_as_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 30 < retry_after({"retry-after": later}) <= 90
    assert retry_after({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 1


def test_a_circle_of_redirects_ends_in_a_sentence(hub, proxy, repo):
    def circle(exchange):
        exchange.respond(302, [("Location", f"{proxy.url}/api/models/{repo}/refs")], b"")

    proxy.breaks(circle, method="GET", words="/refs", times=None)
    with pytest.raises(UnreachableError, match=r"failed in hf .*redirects.*Check the network and the address"):
        hub.document(ref(repo))


@pytest.mark.parametrize("headers", [{}, {"retry-after": "soon"}, {"ratelimit": "what"}])
def test_a_hub_that_does_not_say_how_long_is_asked_again_a_little_later_each_time(headers):
    assert retry_after(headers) is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda hf: hf.document("acme/ner"),
        lambda hf: hf.search(Search()),
        lambda hf: hf.resolve(ref("acme/ner")),
        lambda hf: hf.calls.make(lambda: hf.calls.api.model_info("acme/ner"), "Asking", "acme/ner"),
        lambda hf: download.copy(hf.calls, "acme/ner", "0" * 40, "a.bin", hf.into, 1000, None),
    ],
    ids=["refs", "list", "file", "client of the Hub", "download"],
)
def test_an_answer_that_comes_byte_by_byte_is_given_up(tmp_path, ask, monkeypatch):
    monkeypatch.setattr("deltahub.sources.huggingface.calls._SLOWEST", 1e9)
    with serving(tmp_path) as site:
        site.rules.append(lambda handler: handler.drip() or True)
        hf = HuggingFace("hf", site.url, token=False, longest=0.2)
        hf.into = tmp_path / "copy"
        with pytest.raises(UnreachableError, match=r"its answer has not ended.* after 0 s"):
            ask(hf)


def test_a_download_whose_headers_come_one_by_one_is_given_up(tmp_path):
    with serving(tmp_path) as site:
        site.rules.append(lambda handler: handler.drip_headers() or True)
        hf = HuggingFace("hf", site.url, token=False, longest=0.2)
        with pytest.raises(UnreachableError, match=r"its answer has not ended"):
            download.copy(hf.calls, "acme/ner", "0" * 40, "a.bin", tmp_path / "copy", 1000, None)


def test_a_hub_that_keeps_no_amendments_says_so(hub, repo, checkpoint_folder):
    hub.push(checkpoint_folder, f"hf:{repo}")
    with pytest.raises(ConfigError, match="is not a hub of DeltaHub"):
        hub.amend(ref(repo), Amendment("two epochs"))
