"""The pages in a real browser: by keyboard, in both colours, on a phone, without scripts, for everyone."""

from __future__ import annotations

import re

import pytest

from deltahub.server.pages import front
from tests.browsers import violations

pytestmark = pytest.mark.slow  # a browser

SIZES = {"wide": 1280, "phone": 320}
EVERY_PAGE = {
    "front": "/",
    "filtered": "/?type=lora&tag=lang%3Den&q=a",
    "nothing": "/?q=nothing-like-this",
    "delta": "/acme/ner",
    "old": "/acme/ner/tree/v1",
    "versions": "/acme/ner/versions",
    "layers": "/acme/ner/layers/v2",
    "compare": "/-/compare?left=acme/ner@v1&right=acme/ner@v2",
    "compare-form": "/-/compare",
    "text": "/acme/ner/blob/v2/delta_config.json",
    "tensors": "/acme/ner/blob/v2/delta.safetensors",
    "sign-in": "/-/sign-in",
    "missing": "/acme/nope",
}
CARD = """---
license: mit
tags: [ner]
---
# Names in news

Some *text* with `code`, a [link](https://example.org) and a table:

| set | f1 |
| --- | --- |
| test | 0.84 |

#### A deep heading

```python
delta = AutoDeltaModel.from_finetuned("a/very/long/name/that/does/not/fit/on/a/phone", backbone_model=model)
```
"""


@pytest.fixture
def shelf(push) -> None:
    push("acme/ner", tags=["task=ner", "lang=en"], metrics={"f1": 0.81}, blocks=12, card=CARD, message="first run")
    push(
        "acme/ner",
        tags=["task=ner", "lang=en"],
        metrics={"f1": 0.84},
        blocks=12,
        value=2.0,
        aliases=["champion"],
        card=CARD,
    )
    push("acme/sst2", tags=["task=sst2", "lang=en"], metrics={"accuracy": 0.91}, author="grace")
    push("lab/chat", backbone="llama-tiny-with-a-rather-long-name-0.1B-instruct", method="bitfit", author="grace")


@pytest.fixture
def look(visit, pages, shelf):
    """Open a page of the hub."""

    def open_page(path: str, **options):
        return visit(pages.url + path, **options)

    return open_page


def listed(page) -> list[str]:
    return page.locator(".results h2 a").all_inner_texts()


def counted(page, count: str) -> None:
    """Wait until the list says that it has so many."""
    page.locator("#count", has_text=re.compile(f"^{count}$")).wait_for()


def focused(page) -> str:
    return page.evaluate("document.activeElement.innerText || document.activeElement.id")


def test_typing_searches_without_a_button_and_the_address_follows(look, keep):
    page = look("/")
    page.get_by_label("Search deltas").press_sequentially("sst2")
    counted(page, "1 delta")
    assert listed(page) == ["acme/sst2"]
    assert page.url.endswith("/?q=sst2")
    assert focused(page) == "q"
    assert page.locator("#said").inner_text() == "1 delta"
    keep(page, "hub-search")
    page.reload()
    assert listed(page) == ["acme/sst2"]


def test_search_and_filters_are_used_by_keyboard_alone(look):
    page = look("/")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page) == "q":
            break
    page.keyboard.type("a")
    page.locator(".chips a", has_text="words: a").wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        if focused(page).startswith("bitfit"):
            break
    page.keyboard.press("Enter")
    counted(page, "1 delta")
    assert page.url.endswith("/?q=a&type=bitfit")
    assert focused(page).startswith("bitfit")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    counted(page, "3 deltas")
    page.go_back()
    counted(page, "1 delta")


def test_the_search_keeps_the_filters(look):
    page = look("/?author=grace")
    page.get_by_label("Search deltas").press_sequentially("chat")
    counted(page, "1 delta")
    assert listed(page) == ["lab/chat"]
    assert sorted(page.url.partition("?")[2].split("&")) == ["author=grace", "q=chat"]


def test_another_order_is_chosen(look):
    page = look("/")
    page.get_by_label("Sort by").select_option("name")
    page.wait_for_url("**/?sort=name")
    assert listed(page) == ["acme/ner", "acme/sst2", "lab/chat"]


def test_the_next_page_is_read_from_its_top(look, monkeypatch):
    monkeypatch.setattr(front, "PER_PAGE", 1)
    page = look("/?sort=name", viewport={"width": 320, "height": 400})
    page.get_by_role("link", name="Next").click()
    page.get_by_text("page 2 of 3").wait_for()
    assert listed(page) == ["acme/sst2"]
    page.wait_for_function("scrollY === 0")
    assert page.url.endswith("/?sort=name&page=2")


def test_from_an_empty_hub_the_way_leads_to_the_sign_in(visit, pages):
    page = visit(pages.url)
    page.get_by_role("main").get_by_role("link", name="Sign in", exact=True).click()
    page.get_by_label("Token").wait_for()


def test_an_error_while_typing_is_shown_as_a_page(look, pages, monkeypatch):
    page = look("/", strict=False)
    monkeypatch.setattr(front, "facets", lambda *_: 1 / 0)
    page.get_by_label("Search deltas").press_sequentially("x")
    page.get_by_role("heading", name="Server error").wait_for()


def test_a_command_is_copied(look):
    page = look("/acme/ner", permissions=["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy: DeltaHub", exact=True).first
    button.click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "deltahub pull team:acme/ner@v2 --to ./ner"


def test_where_nothing_can_be_copied_the_text_is_selected(look):
    page = look("/acme/ner")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy: DeltaHub", exact=True).first.click()
    page.get_by_text("Selected").wait_for()
    assert page.evaluate("getSelection().toString()").strip() == "deltahub pull team:acme/ner@v2 --to ./ner"


def ground(page) -> int:
    """How bright the page is, 0 to 255."""
    return int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])


def test_dark_follows_the_system_until_a_choice_is_made_and_the_choice_stays(look, keep):
    assert ground(look("/", color_scheme="light")) > 200
    page = look("/acme/ner", color_scheme="dark")
    assert ground(page) < 50
    page.get_by_role("button", name="Light").click()
    assert ground(page) > 200
    assert page.get_by_role("button", name="Light").get_attribute("aria-pressed") == "true"
    page.goto(page.url + "/versions")
    assert ground(page) > 200
    page.get_by_role("button", name="System colours").click()
    page.reload()
    assert ground(page) < 50


def test_everything_works_without_scripts(look):
    page = look("/", java_script_enabled=False)
    page.get_by_label("Search deltas").fill("ner")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/?q=ner*")
    page.get_by_role("link", name="acme/ner", exact=True).click()
    page.get_by_role("link", name="Versions").click()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Norms").wait_for()
    assert page.locator("figure svg").count() == 2
    page.get_by_role("button", name="Dark").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert "/-/compare?left=" in page.url


def test_signing_in_and_out(look, hub):
    hub.hide("lab/chat")
    page = look("/lab/chat", strict=False)
    page.get_by_role("link", name="Sign in with a token").click()
    page.get_by_label("Token").fill(hub.token("read", "lab"))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="lab/chat").wait_for()
    assert page.get_by_text("private", exact=True).is_visible()
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in").wait_for()
    assert "lab/chat" not in listed(page)


def test_the_page_prints_without_its_controls(look):
    page = look("/acme/ner", color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator(".theme").is_visible()
    assert not page.locator(".tabs").is_visible()
    assert page.get_by_role("heading", name="Names in news").is_visible()


@pytest.mark.parametrize("half", [0, 1])
def test_every_page_is_accessible_in_both_colours_and_fits(look, keep, half):
    page = look(
        "/",
        bypass_csp=True,  # the checker is a script of its own
        strict=False,  # one of the pages is an error
    )
    origin, wrong = page.url.rstrip("/"), []
    for name, path in list(EVERY_PAGE.items())[half::2]:
        page.set_viewport_size({"width": SIZES["wide"], "height": 800})
        page.goto(origin + path)
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        wrong += [f"{name}: {what}" for what in violations(page, narrow=SIZES["phone"])]
        for size, width in SIZES.items():
            page.set_viewport_size({"width": width, "height": 800})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                keep(page, f"hub-{name}-{scheme}-{size}")
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wrong.append(f"{name} is too wide in {scheme} colours on a {size} page")
    assert wrong == []


def test_an_empty_hub_is_accessible_too(visit, pages):
    page = visit(pages.url, bypass_csp=True, viewport={"width": 320, "height": 700})
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
