"""Layers and comparisons: numbers that are right, drawn once, and tables that say the same."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from deltahub.reference import Reference
from deltahub.server.pages import layers
from deltahub.server.pages.plots import brief
from deltahub.stores.base import object_key
from tests.server.pages.deltas import RANK, WIDTH


def svgs(page) -> list[ET.Element]:
    found = re.findall(r'<svg class="plot".*?</svg>', page.text, re.DOTALL)
    return [ET.fromstring(text) for text in found]  # the page's own


def norm_of(value: float, block: int, scale: float = 2.0) -> str:
    down, up = np.full((RANK, WIDTH), value * (block + 1)), np.ones((WIDTH, RANK))
    return f"{scale * np.linalg.norm(up @ down):.4g}"


def test_the_plot_and_the_table_tell_the_norm_of_each_module(pages, push):
    push("acme/ner", blocks=4, value=0.5)
    page = pages.get("/acme/ner/layers/v1")
    (drawn,) = svgs(page)
    assert len(drawn.findall(".//g")) == 2
    assert drawn.attrib["role"] == "img"
    assert drawn.find("title").text
    assert "Norms over blocks 0 to 3" in drawn.find("desc").text
    rows = re.findall(r'<th scope="row"[^>]*>(.*?)</th><td class="number">(.*?)</td>', page.text)
    assert dict(rows) == {
        **{f"encoder.layer.{at}.{part}": norm_of(0.5, at) for at in range(4) for part in ("query", "value")},
        "classifier": "1",
    }


def test_weights_of_too_many_tensors_say_so_and_only_the_length_of_their_table_is_read(pages, push, monkeypatch):
    push("acme/ner", value=0.321)  # of no other test: norms are kept by content
    monkeypatch.setattr(layers, "_LONGEST_HEADER", 100)
    monkeypatch.setattr(layers, "content_of", lambda *_: pytest.fail("it was read"))
    assert "up to 100 bytes are read for a plot" in pages.get("/acme/ner/layers/v1").text


def test_a_file_that_is_too_large_is_reported_and_not_read(pages, hub, push, monkeypatch):
    push("acme/ner")
    monkeypatch.setattr(layers, "LARGEST", 100)
    monkeypatch.setattr(layers, "content_of", lambda *_: pytest.fail("it was read"))
    text = pages.get("/acme/ner/layers/v1").text
    assert "up to 100 bytes are read for a plot" in text


def test_norms_are_read_once(pages, push, monkeypatch):
    push("acme/ner", value=0.123)
    first = pages.get("/acme/ner/layers/v1").text
    monkeypatch.setattr(layers, "content_of", lambda *_: pytest.fail("it was read again"))
    assert pages.get("/acme/ner/layers/v1").text == first


def test_damaged_weights_are_one_clear_error(pages, registry, push):
    push("acme/ner", value=0.77)
    files = registry.resolve(Reference.parse("acme/ner")).manifest.files
    entry = next(file for file in files if file.path.endswith("safetensors"))
    path = registry.store.root / object_key(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "The weights are damaged or missing" in pages.get("/acme/ner/layers/v1").text


def test_of_many_kinds_of_modules_the_largest_are_drawn_and_all_are_in_the_table(pages, push):
    tensors = {f"h.{at}.m{kind}.deltas.w": np.full(3, kind + 1.0, np.float32) for at in range(2) for kind in range(11)}
    push("acme/many", method="bitfit", tensors=tensors)
    page = pages.get("/acme/many/layers/v1")
    assert len(svgs(page)[0].findall(".//g")) == layers.LINES == 8
    assert "3 more module types are in the table only" in page.text
    assert page.text.count('<th scope="row" class="mono wrap">') == 22


def test_a_delta_outside_of_blocks_has_a_table_and_no_plot(pages, push):
    push("acme/head", method="bitfit", tensors={"head.deltas.w": np.ones(4, np.float32)})
    page = pages.get("/acme/head/layers/v1")
    assert svgs(page) == []
    assert "there is no plot" in page.text
    assert '<td class="number">2</td>' in page.text


@pytest.fixture
def two(push) -> str:
    push("acme/ner", value=0.5, metrics={"f1": 0.8, "recall": 0.7})
    tensors = {
        f"encoder.layer.{at}.query.deltas.lora_A": np.full((RANK + 1, WIDTH), 1.0, np.float32) for at in range(3)
    }
    tensors |= {f"encoder.layer.{at}.query.deltas.lora_B": np.ones((WIDTH, RANK + 1), np.float32) for at in range(3)}
    push("acme/ner", tensors=tensors, metrics={"f1": 0.9}, lora_r=RANK + 1)
    return "/-/compare?left=acme/ner@v1&right=acme/ner@v2"


def section(page, name: str) -> str:
    return re.search(rf'aria-labelledby="{name}">(.*?)</section>', page.text, re.DOTALL)[1]


def cells(text: str) -> dict[str, tuple[str, str]]:
    rows = re.findall(
        r"<tr><th scope=\"row\"[^>]*>(.*?)</th>\s*<td[^>]*>(.*?)</td>\s*<td[^>]*>(.*?)</td>", text, re.DOTALL
    )
    plain = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in rows]
    return {name.split()[0]: (left, right) for name, left, right in plain}


def test_a_comparison_shows_differences_side_by_side(pages, two):
    page = pages.get(two)
    assert cells(section(page, "config")) == {"lora_r": ("2", "3")}
    assert cells(section(page, "metrics")) == {"f1": ("0.8", "0.9"), "recall": ("0.7", "none")}
    tensors = cells(section(page, "tensors"))
    assert tensors["encoder.layer.0.query.deltas.lora_A"] == ("F32 2 × 6", "F32 3 × 6")
    assert tensors["encoder.layer.2.value.deltas.lora_B"] == ("F32 6 × 2", "none")
    assert section(page, "tensors").count('class="mark removed"') == 7


def test_norms_are_drawn_on_one_scale_and_in_a_table(pages, two):
    page = pages.get(two)
    drawn = svgs(page)
    assert len(drawn) == 2
    scales = {
        tuple(text.text for text in one.findall("text") if text.attrib["text-anchor"] == "end")[:-1] for one in drawn
    }
    assert len(scales) == 1
    table = cells(section(page, "norms"))
    assert table["encoder.layer.1.query"][0] == norm_of(0.5, 1)
    assert table["encoder.layer.1.value"][1] == "none"
    assert brief(float(table["encoder.layer.1.query"][1])) == brief(4 / 3 * 3 * 6)


def test_equal_versions_are_shown_as_equal(pages, push):
    push("acme/ner")
    push("lab/copy")
    assert "the same content and the same digest" in pages.get("/-/compare?left=acme/ner@v1&right=lab/copy").text
    push("lab/copy", metadata={"description": "other words"})
    assert "identical, byte for byte" in pages.get("/-/compare?left=acme/ner@v1&right=lab/copy").text


def test_without_two_versions_the_form_is_shown(pages):
    page = pages.get("/-/compare?left=acme/ner@v1")
    assert page.status_code == 200
    assert 'value="acme/ner@v1"' in page.text


@pytest.mark.parametrize("right", ["nonsense", "a/b/c@v1", "../x@v1", "acme/nope@v1", "acme/ner@v9"])
def test_a_side_that_is_not_there_is_a_page_that_says_so(pages, push, right):
    push("acme/ner")
    page = pages.get(f"/-/compare?left=acme/ner@v1&right={right}")
    assert page.status_code in (400, 401, 404)
    assert "<h1" in page.text


def test_a_comparison_tells_nothing_of_private_deltas(hub, push):
    push("acme/open")
    push("acme/secret", metrics={"hush": 1})
    hub.hide("acme/secret")
    page = hub.pages.get("/-/compare?left=acme/open&right=acme/secret")
    assert page.status_code == 401
    assert "hush" not in page.text
