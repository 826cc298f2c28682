import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from torch import nn

from deltahub import LoraModel, Visualization
from deltahub.engine.drawing.html import short_name
from deltahub.engine.structure.names import StructureMap
from tests.backbones import BACKBONES, bert, untouched

EVIL = '</summary><script>alert("&")</script>'


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, which must close in turn, and its text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    assert reader.open == []
    return reader.seen, " ".join("".join(reader.text).split())


def lora_on_bert():
    model = bert()
    LoraModel(model, modified_modules=["query"]).freeze_module(exclude=["deltas", "classifier"])
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_the_page_is_whole_and_the_backbone_untouched(name, tmp_path):
    model = BACKBONES[name]()
    with untouched(model):
        Visualization(model).save_html(tmp_path / "tree.html")
        Visualization(model).save_svg(tmp_path / "tree.svg")

    seen, text = read(tmp_path / "tree.html")
    assert seen.count("details") == seen.count("summary") > 2
    assert type(model).__name__ in text
    ET.parse(tmp_path / "tree.svg")


def test_the_page_tells_counts_deltas_and_common_names(tmp_path):
    model = lora_on_bert()
    Visualization(model).save_html(tmp_path / "tree.html", rootname="mine")
    _, text = read(tmp_path / "tree.html")

    assert text.startswith("mine mine 5,811 parameters · 563 trained · 512 in deltas")
    assert "query Linear attn.q weight 16 × 16 bias 16 528" in text
    assert "lora LowRankUpdate lora_A 8 × 16 lora_B 16 × 8" in text
    page = (tmp_path / "tree.html").read_text("utf-8")
    assert '<span class="frozen">weight <i>50 × 16</i></span>' in page
    assert '<span class="trained">weight <i>3 × 16</i></span>' in page
    assert '<span class="delta">lora_A <i>8 × 16</i></span>' in page


def test_the_files_need_nothing_from_elsewhere_and_run_nothing(tmp_path):
    Visualization(lora_on_bert()).save_html(tmp_path / "tree.html")
    Visualization(lora_on_bert()).save_svg(tmp_path / "tree.svg")

    for name in ("tree.html", "tree.svg"):
        text = (tmp_path / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|url\((?!#)|<script|@import|src=", text)
    assert "default-src 'none'" in (tmp_path / "tree.html").read_text("utf-8")


def test_names_cannot_be_markup(tmp_path):
    model = bert()
    model.add_module(EVIL, nn.Linear(2, 2))
    model.add_module("[red]\x1b[31m\x00", nn.Linear(2, 3))
    for name in ("tree.html", "tree.svg"):
        save = Visualization(model).save_html if name.endswith("html") else Visualization(model).save_svg
        save(tmp_path / name, rootname=EVIL)
        assert "<script" not in (tmp_path / name).read_text("utf-8")

    seen, text = read(tmp_path / "tree.html")
    assert "script" not in seen
    assert EVIL in text
    picture = "".join(ET.parse(tmp_path / "tree.svg").getroot().itertext())
    assert EVIL in picture.replace("\xa0", " ")
    assert "[red]" in picture
    assert "\x1b" not in (tmp_path / "tree.html").read_text("utf-8")


def test_the_picture_has_the_whole_tree_and_a_legend(tmp_path):
    Visualization(lora_on_bert()).save_svg(tmp_path / "tree.svg")
    picture = "".join(ET.parse(tmp_path / "tree.svg").getroot().itertext()).replace("\xa0", " ")

    for words in (
        "BertForSequenceClassification",
        "0-1",
        "(BertLayer)",
        "2 × ",
        "lora_A:[8, 16]",
        "frozen",
        "drawn once",
    ):
        assert words in picture
    assert "…" not in picture


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        Visualization(lora_on_bert()).save_svg(tmp_path / f"{name}.svg")
        Visualization(lora_on_bert()).save_html(tmp_path / f"{name}.html")

    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("common", "short"),
    [
        ("bert.encoder@.block@.0.attn@.q@", "attn.q"),
        ("transformer.decoder@.block@.11.attn@.q,k,v@", "attn.q,k,v"),
        ("bert.encoder@.block@", "encoder.block"),
        ("embeddings@", "embeddings"),
    ],
)
def test_a_common_name_is_shown_from_the_block_on(common, short):
    assert short == short_name(common)


def test_a_shown_common_name_can_be_used(tmp_path):
    model = bert()
    structure = StructureMap.of(model)
    common = short_name(structure.common_name("bert.encoder.layer.0.attention.self.query"))

    assert len(LoraModel(model, modified_modules=[common]).insertions) == 2
