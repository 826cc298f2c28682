"""The package of docs/extending.md works as it is printed there: built, installed, found, and held against the contracts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# One process: its build, its installation (a wheel is a package and its metadata), its tests, and each entry point by its name.
_SCRIPT = """
import os, pathlib, sys, warnings, zipfile
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from setuptools.build_meta import build_wheel
    zipfile.ZipFile(f"dist/{build_wheel('dist')}").extractall("site")
sys.path.insert(0, os.path.abspath("site"))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

import pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n0", "--rootdir=.", "-c", os.devnull,
                    "-k", "not (llama or t5 or vit)", "test_acme.py"])
assert code == 0, code

import deltahub
from deltahub.testing.backbones import bert
from deltahub_cli.main import main
os.environ.update(NAS_ROOT=os.path.abspath("nas"), ARCHIVE=os.path.abspath("archive"), DELTAHUB_HOME=os.path.abspath("home"),
                  DELTAHUB_CACHE=os.path.abspath("cache"))
delta = deltahub.AutoDeltaModel.from_config({"delta_type": "gate", "strength": 2.0}, bert())
delta.freeze_module()
delta.save_finetuned("archive/acme/ner")
pushed = deltahub.push("archive/acme/ner", "acme/ner", to="nas://ml/deltas")
for name in ("nas://ml/deltas:acme/ner", "archive:acme/ner"):
    loaded = deltahub.AutoDeltaModel.from_finetuned(name, backbone_model=bert())
    assert type(loaded) is type(delta)
assert pathlib.Path("nas/ml/deltas/refs/acme/ner.json").is_file()
sys.argv = ["deltahub", "inspect", "archive/acme/ner"]
try:
    main()
except SystemExit as done:
    assert not done.code
"""


@pytest.mark.slow
def test_the_package_of_the_page_is_built_installed_and_passes_the_contracts(tmp_path):
    files = dict(_BLOCK.findall((ROOT / "docs" / "extending.md").read_text("utf-8")))
    assert set(files) == {"pyproject.toml", "acme_gate.py", "acme_places.py", "test_acme.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110
    )

    assert done.returncode == 0, done.stdout[:4000] + done.stderr
    assert "method: gate (of the package acme-deltas, installed)" in done.stderr
