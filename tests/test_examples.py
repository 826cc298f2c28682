"""The examples, in short, on the real backbones and sentences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
ENVIRONMENT = dict(os.environ)  # as it is outside the tests: where pip finds its package index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def short_run(name: str, work: str) -> str:
    """What a short run of an example prints."""
    environment = {**os.environ, "DEMO_STEPS": "2", "DEMO_WORK": work}
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def minilm() -> None:
    """The backbone and the sentences of the demo, where they have been fetched."""
    if not all((CACHE / name).is_dir() for name in ("minilm", "sentences")):
        pytest.skip("the real backbone is not here: `make demo` fetches it")


@pytest.fixture
def smollm2() -> None:
    """The language model, fetched and expanded if need be."""
    pytest.importorskip("gguf", reason="the extra `examples` is not installed")
    command = [sys.executable, str(ROOT / "examples" / "language_model.py"), "--fetch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode == os.EX_UNAVAILABLE:
        pytest.skip(f"the real backbone cannot be had: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


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


@pytest.mark.usefixtures("smollm2")
def test_a_language_models_delta_loads_with_equal_perplexity():
    shown = short_run("language_model.py", "language-model-test")

    expected, found = shown.split("perplexity ")[-1].split(", as trained ")
    assert expected == found.strip()
    assert float(found) > 1
