"""Delta types of other packages are found by their entry points, and only what is asked for is imported."""

from __future__ import annotations

import json
import logging
import sys

import pytest
import torch

from deltahub import AutoDeltaConfig, AutoDeltaModel, LoraConfig, LoraModel
from deltahub.checkpoint.checkpoint import describe
from deltahub.deltas.bitfit import BiasOffset
from deltahub.errors import ConfigError, TargetError
from deltahub.handle import types
from deltahub.handle.base import DeltaBase, delta_classes
from tests.backbones import bert, logits_of, stir, untouched
from tests.packages import install

SHIFT = """
from dataclasses import dataclass
from typing import Annotated, ClassVar

from deltahub import DeltaBase, DeltaConfig
from deltahub.checkpoint.options import Limits
from deltahub.deltas.bitfit import BiasOffset


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(DeltaConfig):
    scale: Annotated[float, Limits(minimum=0)] = 1.0
    delta_type: ClassVar[str] = "shift"


class ShiftModel(DeltaBase):
    delta_type = "shift"
    config_class = ShiftConfig
    default_modified_modules = ("attn@.q@",)

    @classmethod
    def new_insertion(cls, config, target, width, like):
        return BiasOffset(like, width)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with installed packages, which this process forgets afterwards."""
    monkeypatch.setattr(types, "_TYPES", dict(types._TYPES))
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    for name in ("acme_shift", "acme_broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def shift(site):
    install(site, "acme-shift", "[deltahub.deltas]\nshift = acme_shift:ShiftModel\n", "acme_shift", SHIFT)


def saved(folder, **changes):
    """A saved delta of the type shift, with other values in its config."""
    delta = AutoDeltaModel.from_config({"delta_type": "shift"}, bert())
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(folder)
    path = folder / "delta_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return delta


def load(folder):
    return AutoDeltaModel.from_finetuned(folder, backbone_model=bert())


def test_a_type_of_a_package_is_imported_only_for_its_name_and_saved_with_the_package(shift, tmp_path):
    LoraModel(bert())
    assert "acme_shift" not in sys.modules
    delta = saved(tmp_path / "delta")
    loaded = load(tmp_path / "delta")

    assert type(loaded) is type(delta) is delta_classes()["shift"]
    assert torch.equal(logits_of(delta.backbone_model), logits_of(loaded.backbone_model))
    assert describe(tmp_path / "delta").config["delta_package"] == "acme-shift"
    assert AutoDeltaConfig.from_finetuned(tmp_path / "delta", backbone_hash=None) == delta.config


def test_nothing_on_disk_names_a_package_for_a_built_in_type(tmp_path):
    LoraModel(bert()).save_finetuned(tmp_path)
    document = json.loads((tmp_path / "delta_config.json").read_text())
    assert "delta_package" not in document

    (tmp_path / "delta_config.json").write_text(json.dumps({**document, "delta_package": "acme"}))
    with pytest.raises(ConfigError, match="lora has no option 'delta_package'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        ({"scale": -1}, "scale must be at least 0, got -1"),
        ({"scale": "1"}, "scale must be of type number, got '1'"),
        ({"scael": 1}, "shift has no option 'scael': did you mean 'scale'"),
    ],
)
def test_its_options_are_checked_by_its_config_class(shift, tmp_path, options, clause):
    backbone = bert()
    with untouched(backbone), pytest.raises(ConfigError, match=clause):
        AutoDeltaModel.from_config({"delta_type": "shift", **options}, backbone)
    saved(tmp_path, **options)
    with pytest.raises(ConfigError, match=clause):
        load(tmp_path)


def test_without_its_package_a_delta_is_described_but_not_loaded(shift, site, tmp_path, monkeypatch):
    saved(tmp_path / "delta")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site)])

    assert describe(tmp_path / "delta").config["delta_type"] == "shift"
    with pytest.raises(ConfigError, match=r"acme-shift, which is not installed .* pip install acme-shift"):
        load(tmp_path / "delta")
    with pytest.raises(ConfigError, match="acme-shift, which is not installed"):
        AutoDeltaConfig.from_finetuned(tmp_path / "delta")


def test_a_type_is_not_taken_from_another_package_than_the_one_it_was_saved_with(shift, tmp_path):
    saved(tmp_path, delta_package="Acme.Shift")  # the same to package indexes
    load(tmp_path)
    saved(tmp_path, delta_package="other")
    with pytest.raises(ConfigError, match="comes from the package other, and here it is in acme-shift"):
        load(tmp_path)


@pytest.mark.parametrize("package", ["", "-r x", "a b", "../a", "a;b", 3, None])
def test_only_the_name_of_a_package_is_accepted(shift, tmp_path, package):
    saved(tmp_path, delta_package=package)
    with pytest.raises(ConfigError, match="delta_package must"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("acme_broken:Missing", "cannot be imported: AttributeError"),
        ("acme_absent:Model", "cannot be imported: ModuleNotFoundError: No module named 'acme_absent'"),
        ("acme_broken:function", "is not the one subclass of DeltaBase that has delta_type 'shift'"),
        ("deltahub.deltas:LoraModel", "is not the one subclass of DeltaBase that has delta_type 'shift'"),
    ],
)
def test_an_entry_point_that_does_not_work_is_one_error_and_does_not_hide_the_others(site, caplog, target, why):
    install(site, "acme-broken", f"[deltahub.deltas]\nshift = {target}\n", "acme_broken", "def function(): ...\n")
    with pytest.raises(ConfigError, match=f"'shift' comes from the package acme-broken, whose {target} {why}"):
        AutoDeltaConfig.from_dict({"delta_type": "shift"})
    with caplog.at_level(logging.WARNING, "deltahub"):
        assert "lora" in delta_classes()
    assert why in caplog.text
    assert "shift" not in delta_classes()


def test_two_packages_with_one_type_are_an_error_that_names_both(shift, site, caplog):
    install(site, "acme-two", "[deltahub.deltas]\nshift = acme_two:Model\n")
    with pytest.raises(ConfigError, match="'shift' is in several packages: acme-shift, acme-two"):
        AutoDeltaConfig.from_dict({"delta_type": "shift"})
    with caplog.at_level(logging.WARNING, "deltahub"):
        delta_classes()
    assert "several packages have it, acme-shift, acme-two" in caplog.text


def test_a_built_in_type_is_never_taken_from_a_package(site, caplog):
    install(site, "acme-lora", "[deltahub.deltas]\nlora = acme_absent:Model\n")
    assert AutoDeltaConfig.from_dict({"delta_type": "lora"}) == LoraConfig()
    with caplog.at_level(logging.WARNING, "deltahub"):
        assert delta_classes()["lora"] is LoraModel
    assert "The delta type 'lora' of acme-lora is ignored: it is built in." in caplog.text


def test_a_class_whose_config_is_of_another_type_is_refused_every_time(site):
    code = SHIFT.replace('delta_type: ClassVar[str] = "shift"', 'delta_type: ClassVar[str] = "other"')
    install(site, "acme-shift", "[deltahub.deltas]\nshift = acme_shift:ShiftModel\n", "acme_shift", code)
    for _ in range(2):
        with pytest.raises(ConfigError, match="as its config_class must too"):
            AutoDeltaConfig.from_dict({"delta_type": "shift"})
    assert "shift" not in delta_classes()


def test_a_class_of_the_running_program_keeps_its_name(shift):
    class Own(LoraModel):
        delta_type = "shift"

    with pytest.raises(ConfigError, match="is not the one subclass"):
        types.class_for("shift", "acme-shift")
    assert delta_classes()["shift"] is Own


def test_a_class_that_would_not_be_found_again_is_not_saved(tmp_path):
    class Shift(DeltaBase):
        config_class = LoraConfig

        @classmethod
        def new_insertion(cls, config, target, width, like):
            return BiasOffset(like, width)

    delta = Shift(bert(), LoraConfig(modified_modules=["query"]), name="shift")
    with pytest.raises(ConfigError, match="would not be loaded as that class again"):
        delta.save_finetuned(tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_what_a_subclass_overrides_is_called_by_everything_that_needs_it(tmp_path):
    class Strict(LoraModel):
        calls: list[str] = []
        allowed = True

        def check_places(self):
            self.calls.append("check_places")
            if not self.allowed:
                raise TargetError("not here")
            super().check_places()

        def detach(self, *args, **kwargs):
            self.calls.append("detach")
            super().detach(*args, **kwargs)

    delta = Strict(bert())
    delta.freeze_module()
    for change in (delta.merge, delta.unmerge, delta.detach, delta.attach, lambda: delta.save_finetuned(tmp_path)):
        delta.calls.clear()
        change()
        assert "check_places" in delta.calls
        delta.allowed = False
        with untouched(delta.backbone_model), pytest.raises(TargetError, match="not here"):
            (delta.unmerge if delta.merged else change)()
        delta.allowed = True
    delta.calls.clear()
    delta.remove()
    assert delta.calls == ["detach", "check_places"]
    with pytest.raises(TargetError, match="was removed"):
        delta.check_places()
