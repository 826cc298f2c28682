"""The list of deltas: search, filters with counts, sorting, paging; all of it in the address."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest

from deltahub.server.app import build_app
from deltahub.server.pages import front
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from tests.server.pages.conftest import Pages
from tests.server.running import listening


@pytest.fixture
def shelf(push) -> None:
    push("acme/sst2", tags=["task=sst2", "lang=en"], metrics={"accuracy": 0.91}, aliases=["champion"], message="first")
    push("acme/ner", tags=["task=ner", "lang=en"], metrics={"f1": 0.8}, author="grace", blocks=5)
    push(
        "lab/chat", tags=["lang=de"], backbone="llama-tiny", method="bitfit", author="grace", metrics={"accuracy": 0.5}
    )


def names(page) -> list[str]:
    return re.findall(r'<h2><a href="/([^"]+)"', page.text)


def choices(page, facet: str) -> dict[str, int]:
    part = re.search(rf"<h2>{facet}</h2></summary>(.*?)</details>", page.text, re.DOTALL)
    found = re.findall(r'class="value">([^<]+)<.*?, </span>([\d,]+)<', part[1] if part else "", re.DOTALL)
    return {unescape(value): int(count) for value, count in found}


def link_of(page, value: str) -> str:
    """The address behind a value of a facet."""
    return unescape(re.search(rf'href="([^"]+)"[^>]*><span class="value">{re.escape(value)}<', page.text)[1])


@pytest.mark.usefixtures("shelf")
def test_a_line_describes_a_delta(pages):
    text = pages.get("/?q=sst2").text
    for told in (
        "acme/sst2",
        "v1",
        "champion",
        "lora",
        "bert-tiny",
        "accuracy",
        "0.91",
        "task=sst2",
        "just now",
        "ada",
    ):
        assert told in text


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/", {"acme/sst2", "acme/ner", "lab/chat"}),
        ("/?q=ner", {"acme/ner"}),
        ("/?q=first", {"acme/sst2"}),
        ("/?type=bitfit", {"lab/chat"}),
        ("/?backbone=bert-tiny", {"acme/sst2", "acme/ner"}),
        ("/?author=grace", {"acme/ner", "lab/chat"}),
        ("/?tag=lang%3Den", {"acme/sst2", "acme/ner"}),
        ("/?tag=lang%3Den&tag=task%3Dner", {"acme/ner"}),
        ("/?author=grace&backbone=bert-tiny", {"acme/ner"}),
        ("/?q=nothing", set()),
    ],
)
def test_every_state_of_the_list_is_an_address(pages, address, expected):
    page = pages.get(address)
    assert page.status_code == 200
    assert set(names(page)) == expected


@pytest.mark.usefixtures("shelf")
def test_facets_count_the_results_of_each_choice(pages):
    page = pages.get("/")
    assert choices(page, "Method") == {"lora": 2, "bitfit": 1}
    assert choices(page, "Backbone") == {"bert-tiny": 2, "llama-tiny": 1}
    assert choices(page, "Tags") == {"lang=en": 2, "lang=de": 1, "task=ner": 1, "task=sst2": 1}
    assert choices(page, "Author") == {"grace": 2, "ada": 1}


@pytest.mark.usefixtures("shelf")
def test_each_choice_leads_to_as_many_deltas_as_it_says(pages):
    first = pages.get("/?q=a")
    for facet in ("Method", "Backbone", "Tags", "Author"):
        for value, count in choices(first, facet).items():
            assert len(names(pages.get(link_of(first, value)))) == count, (facet, value)


@pytest.mark.usefixtures("shelf")
def test_a_chosen_value_can_be_changed_for_another_or_taken_back(pages):
    page = pages.get("/?type=lora&author=ada")
    assert choices(page, "Method") == {"lora": 1}
    assert choices(page, "Author") == {"ada": 1, "grace": 1}
    assert parse_qs(urlsplit(link_of(page, "grace")).query) == {"type": ["lora"], "author": ["grace"]}
    assert parse_qs(urlsplit(link_of(page, "lora")).query) == {"author": ["ada"]}


@pytest.mark.usefixtures("shelf")
def test_a_list_is_sorted_by_name_size_or_metric(pages):
    assert names(pages.get("/?sort=name")) == ["acme/ner", "acme/sst2", "lab/chat"]
    assert names(pages.get("/?sort=size"))[0] == "acme/ner"
    assert names(pages.get("/?sort=accuracy")) == ["acme/sst2", "lab/chat", "acme/ner"]
    assert 'value="accuracy"' in pages.get("/").text


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    "address", ["/?sort=%27;drop", "/?page=0", "/?page=x", "/?page=99999999999", "/?sort=", "/?tag="]
)
def test_invalid_conditions_are_left_out(pages, address):
    page = pages.get(address)
    assert page.status_code == 200
    assert len(names(page)) == 3


def test_a_long_list_has_pages(pages, push, monkeypatch):
    monkeypatch.setattr(front, "PER_PAGE", 2)
    for number in range(5):
        push(f"acme/d{number}", value=number + 1)
    found, address = [], "/?sort=name"
    for _ in range(3):
        page = pages.get(address)
        found.append(names(page))
        following = re.search(r'rel="next" href="([^"]+)"', page.text)
        address = unescape(following[1]) if following else ""
    assert found == [["acme/d0", "acme/d1"], ["acme/d2", "acme/d3"], ["acme/d4"]]
    assert address == ""
    assert "page 3 of 3" in page.text
    assert 'rel="prev"' in page.text


def test_an_empty_hub_says_how_the_first_delta_gets_in(pages):
    page = pages.get("/")
    assert page.status_code == 200
    for told in (
        "No deltas yet",
        "deltahub push ./ckpt",
        "deltahub serve token create",
        f"HF_ENDPOINT={pages.url}",
    ):
        assert told in page.text


def test_private_deltas_are_neither_listed_nor_counted_for_others(hub, push):
    push("acme/open", tags=["seen"])
    push("acme/secret", tags=["hush"], author="mallory", backbone="hidden-base")
    hub.hide("acme/secret")
    page = hub.pages.get("/")
    assert names(page) == ["acme/open"]
    for told in ("secret", "hush", "mallory", "hidden-base"):
        assert told not in page.text
    hub.pages.session.headers["Authorization"] = f"Bearer {hub.token('read', 'acme')}"
    assert set(names(hub.pages.get("/"))) == {"acme/open", "acme/secret"}
    hub.pages.session.headers["Authorization"] = f"Bearer {hub.token('read', 'other')}"
    assert names(hub.pages.get("/")) == ["acme/open"]


def test_a_hub_for_those_with_a_token_alone_asks_for_one(registry, push):
    push("acme/open", tags=["hush"])
    with listening(build_app(registry, Settings(rate=0, anonymous="none"))) as (host, port):
        pages = Pages(f"http://{host}:{port}")
        for path in ("/", "/acme/open", "/acme/open/versions"):
            page = pages.get(path)
            assert page.status_code == 401
            assert "hush" not in page.text
            assert "Sign in with a token" in page.text
        token = Tokens(registry.store).create("reader", "read")[1]
        assert pages.post("/-/sign-in", token=token).status_code == 303
        assert names(pages.get("/")) == ["acme/open"]
