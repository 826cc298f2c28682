"""The demo, in short, on the real backbone and sentences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / ".cache" / "movie_reviews"


@pytest.mark.timeout(600)
@pytest.mark.skipif(not ASSETS.is_dir(), reason="the real backbone is not here: `make demo` fetches it")
def test_the_demo_loads_with_equal_answers_and_shows_three_refusals():
    command = [sys.executable, str(ROOT / "examples" / "sentiment.py")]
    environment = {**os.environ, "DEMO_STEPS": "2", "DEMO_WORK": "demo-test"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "local:DeltaHub/sentiment-all-MiniLM-L6-v2@v1" in done.stdout
    assert "largest difference of a logit over 64 sentences: 0.0" in done.stdout
    for error in ("FingerprintMismatch", "IntegrityError", "PickleRefusedError"):
        assert error in done.stdout
    assert "bert.encoder.layer.3.output.dense.weight" in done.stdout
