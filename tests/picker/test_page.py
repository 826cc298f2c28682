"""The page, in a real browser."""

import re

import pytest
from torch import nn

from deltahub import LoraModel, Visualization
from deltahub.deltas import AdapterConfig, AdapterModel, LoraConfig
from deltahub.errors import NothingChosenError
from deltahub.picker.choosing import choose
from tests.backbones import bert, t5
from tests.browsers import violations

pytestmark = pytest.mark.slow  # a browser

SELF = "bert.encoder.layer.{}.attention.self.{}"
DELTAS = {"lora": (LoraModel, LoraConfig()), "adapter": (AdapterModel, AdapterConfig(bottleneck_dim=2))}


@pytest.fixture
def waiting(ask):
    """A choice among the modules of a small BERT that waits for its page."""
    return ask(lambda: choose(bert(), DELTAS))


def item(page, name):
    """The tree item whose spoken name begins so."""
    return page.get_by_role("treeitem", name=re.compile(rf"^{re.escape(name)}")).first


def row(page, name):
    return item(page, name).locator("> .row .name")


def unfold(page, name):
    item(page, name).locator("> .row .unfold").click()


def settled(page, state="ready"):
    page.wait_for_selector(f"body[data-state={state}]")
    return page


def focused(page):
    """What a screen reader says of the focus."""
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def submit(page, waiting):
    page.get_by_role("button", name="Use these modules").click()
    page.get_by_role("heading", name="Chosen.").wait_for()
    return waiting.result()


def test_modules_are_chosen_by_click_and_submitted(visit, waiting, keep):
    page = visit(waiting.url)
    unfold(page, "query, key, value")
    row(page, "query, Linear").click()
    row(page, "value, Linear").click()
    page.get_by_text("1,024").wait_for()
    assert page.locator("#places li").all_inner_texts() == [
        "bert.encoder.layer.0-1.attention.self.query × 2",
        "bert.encoder.layer.0-1.attention.self.value × 2",
    ]
    assert item(page, "query, key, value").get_attribute("aria-checked") == "mixed"
    keep(page, "chosen")

    choice = submit(page, waiting)
    assert choice.addresses == ("query", "value")
    assert choice.names == tuple(SELF.format(i, part) for i in (0, 1) for part in ("query", "value"))
    keep(page, "done")


def test_a_folded_item_represents_all_members_and_an_unfolded_one_itself(visit, waiting):
    page = visit(waiting.url)
    unfold(page, "0-1")
    item(page, "1, BertLayer").focus()
    page.keyboard.press("ArrowRight")
    inside = item(page, "1, BertLayer")
    inside.get_by_role("treeitem", name=re.compile("^intermediate")).locator("> .row .turn").click()
    inside.get_by_role("treeitem", name=re.compile("^dense, Linear, ff.w1")).locator("> .row .name").click()
    settled(page)
    unfold(page, "0-1")
    assert item(page, "0-1").get_attribute("aria-checked") == "false"
    assert page.locator("#line").inner_text() == 'modified_modules=["1.intermediate.dense"]'

    assert submit(page, waiting).names == ("bert.encoder.layer.1.intermediate.dense",)


def test_everything_works_by_keyboard(visit, waiting):
    page = visit(waiting.url)
    page.keyboard.press("/")
    page.keyboard.type("query")
    page.keyboard.press("ArrowDown")
    assert focused(page).startswith("query, key, value, Linear")
    page.keyboard.press("u")
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith("query, Linear, attn.q, 2 modules")
    page.keyboard.press("Space")
    settled(page)
    page.keyboard.press("ArrowLeft")
    assert focused(page).startswith("query, key, value")
    page.keyboard.press("u")
    assert item(page, "query, key, value").get_attribute("aria-checked") == "mixed"
    settled(page)
    for _ in range(12):  # through what lies between, to the button
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "submit":
            break
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Chosen.").wait_for()

    assert waiting.result().addresses == ("query",)


def test_arrows_move_through_the_tree(visit, waiting):
    page = visit(waiting.url)
    page.locator("[role=treeitem]").first.focus()
    for key, expected in (
        ("ArrowUp", "bert"),  # there is nothing above
        ("ArrowDown", "embeddings"),
        ("ArrowUp", "bert"),
        ("ArrowRight", "embeddings"),
        ("ArrowDown", "word_embeddings"),
        ("ArrowLeft", "embeddings"),
        ("End", "classifier"),
        ("Home", "bert"),
        ("ArrowLeft", "bert"),  # it is folded
        ("ArrowDown", "classifier"),
        ("Home", "bert"),
        ("ArrowRight", "bert"),  # it is unfolded
        ("ArrowRight", "embeddings"),
        ("Home", "bert"),
        ("ArrowLeft", "bert"),
        ("*", "bert"),  # all are unfolded
        ("ArrowDown", "embeddings"),
    ):
        page.keyboard.press(key)
        assert focused(page).startswith(f"{expected}, "), key
        assert page.locator("[role=treeitem][tabindex='0']").count() == 1


def test_search_shows_matches_with_their_parents_and_chooses_them(visit, waiting, keep):
    page = visit(waiting.url)
    page.get_by_label("Search modules").fill("layer.1 dense")
    page.get_by_text("3 modules match.").wait_for()
    assert item(page, "attention").is_visible()
    assert not item(page, "embeddings").is_visible()
    keep(page, "search")
    page.get_by_role("button", name="Choose matches").click()
    settled(page)
    page.get_by_label("Search modules").fill("")
    item(page, "embeddings").wait_for()

    names = submit(page, waiting).names
    assert len(names) == 3
    assert all(name.startswith("bert.encoder.layer.1.") and name.endswith("dense") for name in names)


def test_search_knows_common_names_and_types(visit, waiting):
    page = visit(waiting.url)
    for words, count in (
        ("attn.q", "2 modules match."),
        ("embedding", "4 modules match."),
        ("zzz", "No modules match."),
    ):
        page.get_by_label("Search modules").fill(words)
        page.get_by_text(count, exact=True).wait_for()


def test_modules_that_cannot_hold_the_delta_are_refused_and_not_submitted(visit, waiting, keep):
    page = visit(waiting.url)
    row(page, "0-1").click()
    page.get_by_role("alert").get_by_text("is a BertLayer; expected a Linear").wait_for()
    assert not page.locator("#line").is_visible()
    assert page.get_by_role("button", name="Use these modules").is_disabled()
    keep(page, "refused")

    page.get_by_label("Delta", exact=True).select_option("adapter")
    settled(page)
    assert submit(page, waiting).delta_type == "adapter"


def test_clear_lets_everything_go(visit, waiting):
    page = visit(waiting.url)
    row(page, "classifier").click()
    settled(page)
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Nothing chosen yet.").wait_for()

    assert page.locator("[aria-checked=true], [aria-checked=mixed]").count() == 0
    assert page.get_by_role("button", name="Use these modules").is_disabled()


def test_cancel_says_so_on_both_sides(visit, waiting):
    page = visit(waiting.url)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Cancelled.").wait_for()

    with pytest.raises(NothingChosenError, match="cancelled"):
        waiting.result()


def test_closing_the_page_ends_the_wait(visit, ask):
    waiting = ask(lambda: choose(bert(), DELTAS), grace=0.0)
    page = visit(waiting.url)
    page.wait_for_selector("body[data-line=open]")
    assert not waiting.over
    page.close()

    with pytest.raises(NothingChosenError, match="its page was closed"):
        waiting.result()


def test_a_page_may_be_loaded_again(visit, waiting):
    page = visit(waiting.url)
    page.reload()
    row(settled(page), "classifier").click()
    settled(page)

    assert submit(page, waiting).names == ("classifier",)


def test_a_page_whose_program_has_ended_says_so(visit, ask):
    waiting = ask(lambda: choose(bert(), DELTAS))
    page = visit(waiting.url, strict=False)
    waiting.end()
    settled(page, "lost")

    assert "does not answer" in page.get_by_role("alert").inner_text()
    assert page.get_by_role("button", name="Use these modules").is_disabled()


def test_names_that_look_like_markup_are_shown_as_they_are(visit, ask):
    model = bert()
    evil = "<img src=x onerror=alert(1)>"
    model.add_module(evil, nn.Linear(2, 2))
    waiting = ask(lambda: choose(model, DELTAS))
    page = visit(waiting.url)
    row(page, evil).click()
    settled(page)
    assert page.locator("img").count() == 0

    assert submit(page, waiting).names == (evil,)


def test_a_delta_that_is_there_is_shown_and_cannot_be_chosen(visit, ask):
    model = bert()
    LoraModel(model, modified_modules=["pooler.dense"])
    page = visit(ask(lambda: choose(model, DELTAS)).url)
    row(page, "lora, LowRankUpdate").click()
    settled(page)

    assert item(page, "lora, LowRankUpdate").get_attribute("aria-checked") is None
    assert page.get_by_text("Nothing chosen yet.").is_visible()


def test_one_kind_of_delta_needs_no_question_about_it(visit, ask):
    page = visit(ask(lambda: choose(bert(), {"lora": DELTAS["lora"]})).url)

    assert not page.get_by_label("Delta", exact=True).is_visible()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_in_both_colours_and_fits(visit, ask, keep, width):
    page = visit(
        ask(lambda: choose(t5(), DELTAS)).url,
        viewport={"width": width, "height": 800},
        bypass_csp=True,  # the checker is a script of its own
    )
    page.get_by_role("button", name="Expand all").click()
    unfold(page, "q, k, v")
    row(page, "q, Linear").click()
    page.get_by_text("Keys and colours").click()
    settled(page)

    assert violations(page) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        keep(page, f"{scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_saved_tree_is_accessible_and_opens_and_closes(visit, tmp_path):
    model = bert()
    LoraModel(model, modified_modules=["query"]).freeze_module(exclude=["deltas", "classifier"])
    Visualization(model).save_html(tmp_path / "tree.html")
    page = visit((tmp_path / "tree.html").as_uri(), ready="main", bypass_csp=True)
    assert violations(page) == []

    assert page.get_by_text("lora_A").is_visible()
    page.locator("summary", has_text="BertEncoder").click()
    assert not page.get_by_text("lora_A").is_visible()
