"""A delta whose type comes from a package that is not installed is kept, found and shown, and the package is named."""

from __future__ import annotations

import json
import sys

import pytest

from tests.packages import install


@pytest.fixture
def foreign(ckpt):
    """A saved delta of a type that no installed package has."""
    path = ckpt / "delta_config.json"
    document = json.loads(path.read_text()) | {"delta_type": "gate", "delta_package": "acme-deltas", "strength": 2.0}
    path.write_text(json.dumps({key: value for key, value in document.items() if not key.startswith("lora")}))
    return ckpt


def test_it_is_inspected_pushed_found_by_its_type_shown_verified_and_pulled(run, run_json, foreign, tmp_path):
    inspected = run("inspect", foreign)
    assert inspected.exit_code == 0, inspected.output
    assert "method: gate (of the package acme-deltas, not installed here; loading needs it)" in inspected.stderr
    assert run("push", foreign, "acme/ner").exit_code == 0
    assert [line["name"] for line in run_json("list", "--type", "gate")] == ["acme/ner"]
    assert "gate (of the package acme-deltas, not installed here" in " ".join(run("show", "acme/ner").stdout.split())
    assert run("verify").exit_code == 0
    assert run("pull", "acme/ner", "--to", tmp_path / "copy").exit_code == 0
    assert json.loads((tmp_path / "copy" / "delta_config.json").read_text())["strength"] == 2.0


def test_where_the_package_is_installed_it_says_so_without_importing_it(run, foreign, tmp_path, monkeypatch):
    install(tmp_path / "site", "Acme_Deltas", "[deltahub.deltas]\ngate = acme_absent:Model\n")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert "gate (of the package acme-deltas, installed)" in run("inspect", foreign).stderr
    assert "acme_absent" not in sys.modules


def test_a_type_that_nothing_is_known_of_is_refused_with_the_nearest(run):
    done = run("list", "--type", "gat")
    assert done.exit_code == 2
    assert "unknown: 'gat'" in done.output
