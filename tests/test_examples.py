"""The examples, in short: two on the real backbone and sentences where they are, one on a tiny language model."""

import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TextIO

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.backbones import llama

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def short_run(name: str, work: str) -> str:
    """What a short run of an example prints. Its process is a fork of this one, and imports nothing anew."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as printed:
        process = multiprocessing.get_context("fork").Process(
            target=run, args=(ROOT / "examples" / name, work, printed)
        )
        process.start()
        process.join()
        shown = Path(printed.name).read_text(encoding="utf-8")

    assert process.exitcode == 0, shown
    return shown


def run(example: Path, work: str, printed: TextIO) -> None:
    """Run an example as Python would."""
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    sys.stdout = sys.stderr = printed
    os.environ.update(DEMO_STEPS="2", DEMO_WORK=work)
    warnings.resetwarnings()
    sys.argv = [str(example)]
    sys.path.insert(0, str(example.parent))
    runpy.run_path(str(example), run_name="__main__")


@pytest.fixture
def minilm() -> None:
    """The backbone and the sentences of the demo, where they have been fetched."""
    if not all((CACHE / name).is_dir() for name in ("minilm", "sentences")):
        pytest.skip("the real backbone is not here: `make demo` fetches it")


@pytest.fixture
def tiny_language_model(tmp_path, monkeypatch) -> None:
    """A Llama of two blocks with a tokenizer of a few words, and sentences of these words."""
    words = ["<|endoftext|>", "<unk>", *(f"w{number}" for number in range(40))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(words[:2])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path / "model")
    llama(max_position_embeddings=64).save_pretrained(tmp_path / "model")
    texts = [" ".join(words[2 + (row + place) % 40] for place in range(6)) for row in range(20)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    monkeypatch.setenv("DEMO_BACKBONE", str(tmp_path / "model"))
    monkeypatch.setenv("DEMO_TEXTS", str(tmp_path / "texts.txt"))


@pytest.mark.usefixtures("minilm")
def test_the_demo_loads_with_equal_answers_and_shows_three_refusals():
    shown = short_run("sentiment.py", "demo-test")

    assert "local:DeltaHub/sentiment-all-MiniLM-L6-v2@v1" in shown
    assert "largest difference of a logit over 64 sentences: 0.0" in shown
    for error in ("FingerprintMismatch", "IntegrityError", "PickleRefusedError"):
        assert error in shown
    assert "bert.encoder.layer.3.output.dense.weight" in shown


@pytest.mark.usefixtures("minilm")
def test_one_backbone_serves_four_domains_in_one_batch():
    shown = short_run("multitask.py", "multitask-test")

    for domain in ("movie", "amazon", "tweets", "nyt"):
        assert f"local:DeltaHub/sentiment-{domain}@v1" in shown
    assert "A batch of 16 rows for no delta, amazon, tweets, nyt, movie" in shown
    assert "largest difference of a logit from one delta at a time" in shown


@pytest.mark.usefixtures("tiny_language_model")
def test_a_language_models_delta_loads_with_equal_perplexity(tmp_path):
    shown = short_run("language_model.py", str(tmp_path / "work"))

    expected, found = shown.split("perplexity ")[-1].split(", as trained ")
    assert expected == found.strip()
    assert float(found) > 1
