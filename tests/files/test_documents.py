"""The schemas say what the code says."""

import json
from pathlib import Path

import fastjsonschema
import pytest

from deltahub.checkpoint.config import CHECKPOINT_KEYS, DeltaConfig, known_types
from deltahub.checkpoint.options import options_of
from deltahub.files.documents import load_schema, problem
from deltahub.handle.base import delta_classes

ROOT = Path(__file__).parents[2]
STRUCTURES = sorted((ROOT / "deltahub" / "structures").glob("*.json"))


@pytest.mark.parametrize("path", sorted((ROOT / "schemas").glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_compiles_and_has_a_title(path):
    schema = load_schema(path.stem)
    fastjsonschema.compile(schema)
    assert schema["title"]


@pytest.mark.parametrize("path", STRUCTURES, ids=lambda path: path.stem)
def test_a_structure_map_fits_its_schema_and_bears_its_family_s_name(path):
    document = json.loads(path.read_text("utf-8"))
    assert problem(document, "structure.v1") is None
    assert document["family"] == path.stem


def test_no_class_has_two_structure_maps():
    tables = [table for path in STRUCTURES for table in json.loads(path.read_text("utf-8"))["maps"]]
    classes = [name for table in tables for name in table["classes"]]
    assert len(classes) == len(set(classes))


def test_every_delta_type_that_a_checkpoint_can_hold_has_a_model():
    import deltahub.deltas  # noqa: F401  (registers them)

    assert set(known_types()) <= set(delta_classes())


@pytest.mark.parametrize("delta_type", known_types())
def test_the_schema_of_a_type_is_that_of_its_config_class(delta_type):
    import deltahub.deltas  # noqa: F401  (registers them)

    schema = load_schema("delta_config.v1")
    common = set(schema["properties"]) - CHECKPOINT_KEYS
    options = options_of(delta_classes()[delta_type].config_class)

    assert set(options_of(DeltaConfig)) == common
    assert {key: options[key] for key in options if key not in common} == schema["definitions"]["types"][delta_type][
        "properties"
    ]
