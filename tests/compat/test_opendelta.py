"""Programs written for OpenDelta run on `deltahub.compat.opendelta`."""

import copy
import importlib
import json
import logging
import pickle
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltahub.compat import opendelta
from deltahub.compat.opendelta.base import MODELS
from deltahub.errors import (
    AddressError,
    CheckpointError,
    ConfigError,
    DeltaHubError,
    NoMatchError,
    StorageError,
    TargetError,
)
from tests.backbones import bert, equal, logits_of, stir, t5, tensors_of

ROOT = Path(__file__).parents[2]
SMALL = {  # options that fit a hidden size of 16
    "compacter": {"reduction_factor": 4},
    "low_rank_adapter": {"reduction_factor": 4},
    "prefix": {"embed_dim": 4, "mid_dim": 4},
    "soft_prompt": {"soft_token_num": 3},
}
TYPES = [*MODELS]


def made(delta_type, backbone, **options):
    config = opendelta.AutoDeltaConfig.from_dict({"delta_type": delta_type, **SMALL.get(delta_type, {}), **options})
    return opendelta.AutoDeltaModel.from_config(config, backbone_model=backbone)


@pytest.fixture
def as_opendelta(monkeypatch):
    """`import opendelta` and `import bigmodelvis` mean nothing before the test, and nothing after it."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"opendelta", "bigmodelvis"}]:
        monkeypatch.delitem(sys.modules, name)
    before = {*sys.modules}
    yield monkeypatch
    for name in {*sys.modules} - before:
        if name.split(".")[0] in {"opendelta", "bigmodelvis"}:
            del sys.modules[name]


# ----- module paths -----


PATHS = {
    "": "AutoDeltaConfig AutoDeltaModel BaseDeltaConfig CommonStructureMap DeltaBase LoraModel SaveLoadMixin Visualization set_axis_order",
    "auto_delta": "AutoDeltaConfig AutoDeltaModel",
    "basemodel": "DeltaBase is_child_key",
    "delta_configs": "BaseDeltaConfig",
    "delta_models.adapter": "AdapterConfig AdapterModel",
    "delta_models.bitfit": "BitFitConfig BitFitModel",
    "delta_models.compacter": "CompacterConfig CompacterModel",
    "delta_models.lora": "LoraConfig LoraModel",
    "delta_models.low_rank_adapter": "LowRankAdapterConfig LowRankAdapterModel",
    "delta_models.parallel_adapter": "ParallelAdapterConfig ParallelAdapterModel",
    "delta_models.prefix": "PrefixConfig PrefixModel",
    "delta_models.soft_prompt": "SoftPromptConfig SoftPromptModel",
    "utils.inspect": "inspect_module_statistics inspect_optimizer_statistics num_delta_parameters num_trainable_parameters",
    "utils.interactive.web": "interactive",
    "utils.logging": "get_logger set_verbosity_info",
    "utils.model_md5": "gen_model_hash gen_parameter_hash",
    "utils.name_based_addressing": "endswith_in endswith_in_normal endswith_in_regex superstring_in",
    "utils.saving_loading_utils": "SaveLoadMixin",
    "utils.structure_mapping": "CommonStructureMap",
    "utils.visualization": "Visualization",
}


@pytest.mark.parametrize("by_package", [False, True], ids=["install()", "package"])
def test_every_module_path_of_opendelta_has_its_names(as_opendelta, by_package):
    if by_package:
        as_opendelta.syspath_prepend(str(ROOT / "compat" / "opendelta"))
    else:
        opendelta.install()
    for path, names in PATHS.items():
        module = importlib.import_module(f"opendelta.{path}".rstrip("."))
        assert [name for name in names.split() if not hasattr(module, name)] == [], path
    assert importlib.import_module("opendelta") is opendelta
    assert importlib.import_module("bigmodelvis").Visualization is opendelta.Visualization
    assert opendelta.utils.inspect is sys.modules["opendelta.utils.inspect"]


def test_installing_twice_is_installing_once_and_another_opendelta_is_not_replaced(as_opendelta):
    opendelta.install()
    opendelta.install()
    as_opendelta.setitem(sys.modules, "opendelta", json)
    with pytest.raises(ConfigError, match="imported already"):
        opendelta.install()
    assert sys.modules["opendelta"] is json


@pytest.mark.parametrize(
    "path", ["delta_models.layers.low_rank_linear", "utils.decorate", "utils.common_structures.t5"]
)
def test_a_module_without_a_counterpart_names_the_alternative(as_opendelta, path):
    opendelta.install()
    module = importlib.import_module(f"opendelta.{path}")
    with pytest.raises(ConfigError, match=r"has no counterpart in DeltaHub\. .+"):
        _ = module.anything


# ----- every delta type -----


@pytest.mark.parametrize("delta_type", TYPES)
def test_a_delta_of_any_type_has_the_methods_of_opendelta_and_loads_as_its_class(tmp_path, delta_type):
    backbone = bert()
    delta = made(delta_type, backbone)
    total = sum(p.numel() for p in backbone.parameters())
    own = sum(p.numel() for p in delta.parameters())
    assert 0 < own == delta.num_total_parameters() == delta.num_trainable_parameters()
    delta.freeze_module()
    assert set(delta.trainable_parameters_names()) | set(delta.frozen_parameters_names()) == {
        name for name, _ in backbone.named_parameters()
    }
    assert all("deltas" in name.split(".") for name in delta.trainable_parameters_names())
    assert {id(p) for p in delta.trainable_parameters()} == {id(p) for p in delta.parameters()}
    assert (own, total) == (delta.num_trainable_parameters(backbone), delta.num_total_parameters(backbone))
    assert opendelta.utils.inspect.num_delta_parameters(backbone) == own
    delta.mark_as_delta()
    assert all(p._is_delta for p in delta.parameters())
    delta.create_config_from_model()
    stir(delta)
    expected = logits_of(backbone)
    delta.save_finetuned(tmp_path / "delta")
    other = bert()
    loaded = opendelta.AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=other)
    assert torch.equal(expected, logits_of(other))
    assert type(loaded) is MODELS[delta_type]
    assert isinstance(loaded.config, opendelta.BaseDeltaConfig)
    assert type(loaded.config) is type(delta.config)


@pytest.mark.parametrize("delta_type", TYPES)
def test_a_config_is_written_and_read_and_unknown_keys_are_passed_over_with_one_warning(tmp_path, delta_type, caplog):
    config = opendelta.AutoDeltaConfig.from_dict({"delta_type": delta_type, **SMALL.get(delta_type, {})})
    assert not caplog.records
    config.save_finetuned(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document == {"delta_type": delta_type, **SMALL.get(delta_type, {})}
    assert (
        config
        == opendelta.AutoDeltaConfig.from_finetuned(tmp_path)
        == type(config).from_finetuned(tmp_path / "config.json")
    )
    config.to_json_file(tmp_path / "all.json", use_diff=False)
    (tmp_path / "all.json").write_text(json.dumps({**config.to_dict(), "phm_clamp": False, "backbone_model": "t5"}))
    assert config == opendelta.AutoDeltaConfig.from_finetuned(tmp_path / "all.json")
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["backbone_model, phm_clamp"]
    with pytest.raises(ConfigError, match="no option 'phm_clamp'"):
        opendelta.AutoDeltaConfig.from_dict({"delta_type": delta_type}, phm_clamp=False)


def test_what_is_not_a_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"lora_r": 8}')
    with pytest.raises(CheckpointError, match="no delta_type"):
        opendelta.AutoDeltaConfig.from_finetuned(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        opendelta.AutoDeltaConfig.from_finetuned(tmp_path)
    with pytest.raises(ConfigError, match="lora_r"):
        opendelta.AutoDeltaConfig.from_dict({"delta_type": "lora", "lora_r": "eight", "unknown": 1})
    config = opendelta.AutoDeltaConfig.from_dict({"delta_type": "lora"})
    with pytest.raises(ConfigError, match="pushed with its delta"):
        config.save_finetuned(tmp_path, push_to_hub=True)
    with pytest.raises(StorageError, match="File exists"):
        config.save_finetuned(tmp_path / "config.json")


# ----- jobs of the example scripts -----


@dataclass
class Sizes:
    """The options of one method, which the scripts merge into the arguments."""

    bottleneck_dim: int = 24


NORMS = ["deltas", "layer_norm", "final_layer_norm"]
COMPACTER = {"hypercomplex_adapters": True, "gradient_clip": False, "phm_clamp": False, "normalize_phm_weight": False}
JOBS = {  # of a T5 with 16 numbers in a hidden state, 2 blocks on each side: fields, options of the method, numbers that train
    "bitfit": ({}, {}, 608),
    "adapter": ({"unfrozen_modules": NORMS}, {"bottleneck_dim": 24}, 8 * (2 * 16 * 24 + 24 + 16)),
    "compacter++": (
        {"unfrozen_modules": NORMS, "modified_modules": ["DenseReluDense"]},
        {**COMPACTER, "reduction_factor": 4},
        752,
    ),
    "soft_prompt": ({}, {"soft_token_num": 5, "token_init": False}, 5 * 16),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_of_the_example_scripts_runs_from_its_arguments_to_its_folder(tmp_path, job, caplog, capsys):
    fields, options, size = JOBS[job]
    arguments = opendelta.DeltaArguments(
        delta_type=job.rstrip("+"), backbone_model="t5", finetuned_delta_path=str(tmp_path / "delta"), **fields
    )
    backbone = t5()
    config = opendelta.AutoDeltaConfig.from_dict({**asdict(arguments), **options})
    delta = opendelta.AutoDeltaModel.from_config(config, backbone_model=backbone)
    delta.freeze_module(set_state_dict=True)
    delta.log(delta_ratio=True, trainable_ratio=True, visualization=True)
    assert delta.num_total_parameters() == size
    assert set(backbone.state_dict()) == set(delta.trainable_parameters_names())
    norms = [name for name in delta.trainable_parameters_names() if "layer_norm" in name and "deltas" not in name]
    assert bool(norms) == ("unfrozen_modules" in fields)
    logits = logits_of(backbone)
    delta.save_finetuned(
        finetuned_delta_path=arguments.finetuned_delta_path,
        push_to_dc=False,
        center_args={"test_performance": 0.5},
        center_args_pool={**vars(arguments), "learning_rate": 3e-4},
        list_tags=["NLI"],
        dict_tags={"purpose": "for testing"},
        delay_push=arguments.delay_push,
    )
    other = t5()
    opendelta.AutoDeltaModel.from_finetuned(arguments.finetuned_delta_path, backbone_model=other)
    assert torch.equal(logits, logits_of(other))
    assert sum("passes over" in record.message for record in caplog.records) == 1
    assert "Trainable Ratio" in capsys.readouterr().out


def test_arguments_take_the_fields_of_one_method():
    arguments = opendelta.DeltaArguments(delta_type="adapter")
    arguments.merge_arguments(Sizes(bottleneck_dim=7))
    assert opendelta.AutoDeltaConfig.from_dict(asdict(arguments)).bottleneck_dim == 7


def test_common_structure_is_passed_over_where_no_modules_are_given():
    by_arguments = made("lora", bert(), common_structure=False, modified_modules=None)
    by_class = opendelta.LoraModel(bert(), common_structure=False)
    assert 4 == len(by_arguments.insertions) == len(by_class.insertions)
    with pytest.raises(NoMatchError):
        opendelta.LoraModel(bert(), modified_modules=["attn@.q@"], common_structure=False)


# ----- freezing -----


def test_unfrozen_modules_without_a_match_are_passed_over_with_one_warning_and_not_saved(tmp_path, caplog):
    backbone = bert()
    delta = made("lora", backbone, unfrozen_modules=["deltas", "final_layer_norm", "classifier", "no.such"])
    delta.freeze_module()
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["final_layer_norm, no.such"]
    assert {"classifier.weight", "classifier.bias"} < {*delta.trainable_parameters_names()}
    assert delta.config.unfrozen_modules == ("deltas", "classifier")
    delta.freeze_module(exclude=["no.such"])
    assert delta.trainable_parameters_names() == []


def test_a_module_without_a_match_is_still_an_error():
    with pytest.raises(NoMatchError):
        made("compacter", bert(), modified_modules=["DenseReluDense"])


def test_the_active_state_dict_is_that_of_the_backbone():
    backbone = bert()
    delta = made("lora", backbone)
    delta.freeze_module(set_state_dict=False)
    whole = {*backbone.state_dict()}
    with pytest.raises(ConfigError, match="takes the backbone"):
        delta.set_active_state_dict(backbone.classifier)
    assert whole == {*backbone.state_dict()}
    delta.set_active_state_dict(backbone)
    assert {*backbone.state_dict()} == {*delta.trainable_parameters_names()} < whole


# ----- finding and inserting modules -----


def test_modules_are_found_by_real_and_by_common_names():
    backbone = bert()
    delta = made("lora", backbone, modified_modules=["query"], exclude_modules=["bert.encoder.layer.1"])
    query = "bert.encoder.layer.0.attention.self.query"
    parent, name, module = delta.find_module(backbone, query)
    assert (parent, name, module) == (
        backbone.bert.encoder.layer[0].attention.self,
        "query",
        backbone.get_submodule(query),
    )
    assert delta.find_module(backbone, "bert") == (backbone, "bert", backbone.bert)
    found = [
        bool(delta.find_key(query, [pattern]))
        for pattern in ("query", "self.query", "attn.q", "attn@.q@", "uery", "key")
    ]
    assert found == [True, True, True, True, False, False]
    assert delta.find_key(query, ["key", r"[r]layer\.\d\.attention\.self\.query"])
    assert not delta.find_key(query.replace("0", "1"), ["query"])  # excluded


class Scale(nn.Module):
    """Multiply what goes in and what comes out by one factor, which starts at 1."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))


class ScaleBoth(Scale):
    def pre_forward(self, *args, **kwargs):
        return (args[0] * self.factor, *args[1:]), kwargs

    def post_forward(self, output):
        return output * self.factor


class Line(nn.Linear):
    def __init__(self):
        super().__init__(16, 16)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


@pytest.mark.parametrize(
    ("method", "module", "change"),
    [
        ("sequential", ScaleBoth, lambda layer, x: 2 * layer(2 * x)),
        ("before", ScaleBoth, lambda layer, x: layer(2 * x)),
        ("after", ScaleBoth, lambda layer, x: 2 * layer(x)),
        ("parallel", Line, lambda layer, x: layer(x) + 2),
    ],
)
def test_a_module_of_a_user_acts_trains_and_detaches_with_the_delta(tmp_path, method, module, change):
    backbone, x = bert(), torch.randn(3, 16)
    delta = made("lora", backbone, modified_modules=["query"])
    key = backbone.bert.encoder.layer[0].attention.self.key
    plain, added = key(x), module()
    delta.insert_module(key, method, added, "mine")
    torch.testing.assert_close(key(x), plain)
    parameter = added.factor if isinstance(added, Scale) else added.bias
    with torch.no_grad():
        parameter.fill_(2)
    delta.freeze_module()
    assert any(p is parameter for p in delta.trainable_parameters())
    changed = key(x)
    delta.detach()
    assert torch.equal(plain, key(x))
    torch.testing.assert_close(changed, change(key, x))
    delta.attach()
    assert torch.equal(changed, key(x))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(backbone)))
    assert torch.equal(changed, twin.bert.encoder.layer[0].attention.self.key(x))
    with pytest.raises(CheckpointError, match="insert_module put on"):
        delta.save_finetuned(tmp_path / "delta")
    delta.save_checkpoint(tmp_path / "tensors")
    with torch.no_grad():
        parameter.fill_(5)
    delta.load_checkpoint(tmp_path / "tensors")
    assert torch.equal(changed, key(x))
    before = tensors_of(bert())
    delta.remove()
    assert equal(before, tensors_of(backbone))


def test_a_module_that_cannot_be_inserted_changes_nothing():
    backbone = bert()
    delta = made("lora", backbone, modified_modules=["query"])
    attention = backbone.bert.encoder.layer[0].attention.self
    logits, names = logits_of(backbone), [name for name, _ in backbone.named_modules()]
    for target, method, module, options, error in (
        (attention.key, "around", Line(), {}, ConfigError),
        (attention.key, "sequential", Line(), {}, ConfigError),  # it would never act
        (attention.key, "parallel", None, {}, ConfigError),
        (attention.key, "parallel", Line(), {"_delta_info": {}}, ConfigError),
        (attention.query, "parallel", Line(), {}, ConfigError),
        (nn.Linear(2, 2), "parallel", Line(), {}, AddressError),
        (backbone.bert.encoder.layer, "parallel", Line(), {}, TargetError),
    ):
        with pytest.raises(error):
            delta.insert_module(target, method, module, **options)
    other = made("adapter", backbone, modified_modules=["value"])
    with pytest.raises(TargetError, match="holds a delta already"):
        delta.insert_parallel_module(attention.value, Line(), strict=True)
    other.remove()
    delta.detach()
    with pytest.raises(ConfigError, match="detached"):
        delta.insert_sequential_module(attention.key, ScaleBoth())
    delta.attach()
    assert torch.equal(logits, logits_of(backbone))
    assert names == [name for name, _ in backbone.named_modules()]


@pytest.mark.parametrize("method", ["add_all_delta_to_backbone", "update_module", "modify_module", "replace_module"])
def test_a_call_without_a_meaning_here_names_the_way_out(method):
    delta = made("lora", bert())
    with pytest.raises(DeltaHubError, match=r"no meaning in DeltaHub.*new_insertion"):
        getattr(delta, method)(nn.Linear(2, 2), "key")


def test_parameters_of_the_backbone_are_not_marked_as_those_of_a_delta():
    backbone = bert()
    with pytest.raises(ConfigError, match="unfrozen_modules"):
        made("lora", backbone).mark_as_delta(backbone.classifier)
    assert not any(hasattr(p, "_is_delta") for p in backbone.parameters())


@pytest.mark.parametrize("delta_type", TYPES)
def test_in_a_module_that_holds_two_models_the_delta_acts_on_both(delta_type):
    backbone = nn.ModuleDict({"a": bert(), "b": bert(1)})
    places = made(delta_type, backbone).insertions
    inner_names = [[name[2:] for name in places if f"{name}.".startswith(f"{key}.")] for key in "ab"]
    assert inner_names[0] == inner_names[1] != []


# ----- tools -----


def test_statistics_of_an_optimizer_count_each_group(caplog):
    backbone = bert()
    made("lora", backbone).freeze_module()
    groups = [{"params": [*backbone.parameters()], "lr": 0.1}, {"params": [nn.Parameter(torch.ones(3))], "lr": 0.5}]
    optimizer = SimpleNamespace(param_groups=groups)  # as of any optimizer of PyTorch
    with caplog.at_level(logging.INFO, "deltahub"):
        first, second = opendelta.utils.inspect.inspect_optimizer_statistics(optimizer).values()
    total = sum(p.numel() for p in backbone.parameters())
    assert (first["total_parameters"], first["trainable_parameters"]) == (total, 1024)
    assert (first["trainable_ratio"], first["lr"]) == (f"{1024 / total * 100:.6f}%", 0.1)
    assert (second["trainable_ratio"], second["lr"]) == ("100.000000%", 0.5)
    assert "optimizer info" in caplog.text
    statistics = opendelta.utils.inspect.inspect_module_statistics(backbone, verbose=False)
    assert (statistics["delta_parameters"], statistics["trainable_ratio"]) == (1024, 1024 / total)


def test_only_the_usual_order_of_axes_is_taken():
    opendelta.set_axis_order([0, 1, 2])
    for change in (
        lambda: opendelta.set_axis_order([0, 2, 1]),
        lambda: setattr(opendelta.global_setting, "axis_order", [0, 2, 1]),
    ):
        with pytest.raises(ConfigError, match="axis_order"):
            change()
    assert opendelta.global_setting.axis_order == [0, 1, 2]


def test_common_names_are_found_by_opendeltas_call():
    names = opendelta.CommonStructureMap.load(bert(), "BertModel", strict=False)
    assert names.common_name("bert.encoder.layer.0.attention.self.query") == "bert.encoder@.block@.0.attn@.q@"


def test_names_and_hashes():
    tools = opendelta.utils.name_based_addressing
    assert tools.is_child_key("a.b.c", ["a.b"])
    assert not tools.is_child_key("a.bc", ["a.b"])
    assert tools.superstring_in("b", ["abc"])
    assert tools.endswith_in("h.0.attn", ["attn"])
    assert not tools.endswith_in("c_attn", ["attn"])
    assert tools.endswith_in_regex("h.0.attn", [r"\d\.attn"])
    assert not tools.endswith_in_normal("h.0.attn", [r"[r]\d\.attn"])
    model, hashes = nn.Linear(2, 2), opendelta.utils.model_md5
    other = copy.deepcopy(model)
    assert hashes.gen_model_hash(model) == hashes.gen_model_hash(other)
    assert (
        hashes.gen_parameter_hash(model.parameters()).digest() == hashes.gen_parameter_hash(other.parameters()).digest()
    )
    nn.init.zeros_(other.weight)
    assert hashes.gen_model_hash(model) != hashes.gen_model_hash(other)
    assert hashes.gen_model_hash(model, with_parameters=False) == hashes.gen_model_hash(other, with_parameters=False)


def test_the_level_of_messages_is_that_of_deltahubs_logger():
    level = opendelta.logging.get_verbosity()
    try:
        opendelta.logging.set_verbosity_error()
        assert logging.getLogger("deltahub").level == logging.ERROR == opendelta.logging.get_verbosity()
    finally:
        opendelta.logging.set_verbosity(level)
    assert opendelta.logging.get_logger() is logging.getLogger("deltahub")
    assert opendelta.logging.get_logger("mine").name == "mine"
