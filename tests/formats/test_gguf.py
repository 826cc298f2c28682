"""A LoRA in GGUF gives what llama.cpp computes, by its formula on the rows that its own file of the backbone has.

The formula was compared with llama.cpp itself for each family of models that is known.
"""

import contextlib
import struct
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from deltahub import AutoDeltaModel, IA3Model, LoraModel
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.from_files import holds_delta
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.gguf import reading
from deltahub.formats.gguf.architectures import Architecture
from deltahub.formats.writing import Format, files_of
from tests.backbones import bert, equal, stir, tensors_of, untouched

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
IDS = torch.tensor([[3, 17, 39, 4, 7, 12]])


def halves(heads):
    """The rows of q or k in llama.cpp: of each head the first of both halves, then the second of both, ..."""
    return lambda w: w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def by_head(w):
    """The rows of a fused layer in llama.cpp: q of all heads, k of all heads, v of all heads."""
    parts = w.reshape(4, 3, -1, *w.shape[1:])
    return torch.cat([parts[:, number].reshape(-1, *w.shape[1:]) for number in range(3)])


LLAMA = {
    "attn_q": ("model.layers.{}.self_attn.q_proj", halves(4)),
    "attn_k": ("model.layers.{}.self_attn.k_proj", halves(2)),
    "attn_v": ("model.layers.{}.self_attn.v_proj", None),
    "attn_output": ("model.layers.{}.self_attn.o_proj", None),
    "ffn_gate": ("model.layers.{}.mlp.gate_proj", None),
    "ffn_up": ("model.layers.{}.mlp.up_proj", None),
    "ffn_down": ("model.layers.{}.mlp.down_proj", None),
    "token_embd": ("model.embed_tokens", None),
    "output": ("lm_head", None),
}
FAMILIES = {  # the architecture in GGUF, the config, and the module and the order of rows of each weight
    "llama": ("llama", lambda: transformers.LlamaConfig(**GROUPED), LLAMA),
    "mistral": ("llama", lambda: transformers.MistralConfig(**GROUPED, head_dim=8), LLAMA),
    "qwen2": (
        "qwen2",
        lambda: transformers.Qwen2Config(**GROUPED),
        {leaf: (module, None) for leaf, (module, _) in LLAMA.items()},
    ),
    "gpt2": (
        "gpt2",
        lambda: transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=16),
        {
            "attn_qkv": ("transformer.h.{}.attn.c_attn", None),
            "attn_output": ("transformer.h.{}.attn.c_proj", None),
            "ffn_up": ("transformer.h.{}.mlp.c_fc", None),
            "ffn_down": ("transformer.h.{}.mlp.c_proj", None),
        },
    ),
    "phi3": (
        "phi3",
        lambda: transformers.Phi3Config(**GROUPED, original_max_position_embeddings=16, pad_token_id=0),
        {
            "attn_qkv": ("model.layers.{}.self_attn.qkv_proj", None),
            "attn_output": ("model.layers.{}.self_attn.o_proj", None),
            "ffn_up": ("model.layers.{}.mlp.gate_up_proj", None),
            "ffn_down": ("model.layers.{}.mlp.down_proj", None),
        },
    ),
    "gpt_neox": (
        "gptneox",
        lambda: transformers.GPTNeoXConfig(**SIZES),
        {
            "attn_qkv": ("gpt_neox.layers.{}.attention.query_key_value", by_head),
            "attn_output": ("gpt_neox.layers.{}.attention.dense", None),
            "output": ("lm_head", None),
        },
    ),
}


def model_of(family, **changes):
    config = FAMILIES[family][1]()
    config.update({"bos_token_id": 1, "eos_token_id": 2, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def module_of(family, weight):
    """The name of a weight's module, and the order of its rows."""
    parts = weight.removesuffix(".weight").split(".")
    module, order = FAMILIES[family][2][parts[-1]]
    return module.format(parts[1] if len(parts) > 1 else ""), order


@torch.no_grad()
def llama_cpp(family, path):
    """Compute W + s B A in the layout of llama.cpp; return the logits of a model with these weights."""
    model = model_of(family)
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    for weight in sorted({name.rpartition(".")[0] for name in stored}):
        down, up = stored[f"{weight}.lora_a"], stored[f"{weight}.lora_b"]
        down = down.T if weight == "token_embd.weight" else down
        scale = alpha / up.shape[1] if alpha else 1.0
        name, reorder = module_of(family, weight)
        layer = model.get_submodule(name)
        turned = not isinstance(layer, torch.nn.Linear)  # a Conv1D or an embedding
        plain = layer.weight.T if turned else layer.weight
        rows = torch.arange(len(plain))[:, None]
        order = (reorder(rows) if reorder else rows).flatten()
        assert reorder is None or torch.equal(reorder(plain), plain[order])
        changed = plain.clone()
        changed[order] = plain[order] + scale * up @ down
        layer.weight.copy_(changed.T if turned else changed)
    return logits(model)


def saved(delta, folder):
    """Give a delta values, save it, and return the logits with it and its checkpoint."""
    delta.freeze_module(set_state_dict=True)
    stir(delta)
    expected = logits(delta.backbone_model)
    delta.save_finetuned(folder)
    delta.remove()
    return expected, checkpoint.read(folder)


def write(delta, model, folder):
    folder.mkdir(exist_ok=True)
    for name, content in files_of(Format.GGUF, delta, Backbone.of(delta, model)).items():
        (folder / name).write_bytes(content)
    return folder / "lora.gguf"


def lora(model, modules, **options):
    return LoraModel(model, modified_modules=modules, exclude_modules=[], common_structure=False, lora_r=3, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_lora_gives_in_llama_cpp_what_the_delta_gives_and_so_does_the_file_read_here(family, tmp_path):
    model = model_of(family)
    modules = [module_of(family, f"blk.1.{leaf}")[0] for leaf in FAMILIES[family][2]]
    delta = lora(model, modules, lora_alpha=5, rank_pattern={modules[0]: 2}, alpha_pattern={modules[1]: 0.5})
    expected, document = saved(delta, tmp_path / "delta")
    path = write(document, model, tmp_path / "gguf")

    assert (logits(model) - expected).abs().max() > 0.1
    torch.testing.assert_close(llama_cpp(family, path), expected, rtol=1e-4, atol=1e-4)
    again = AutoDeltaModel.from_finetuned(path.parent, backbone_model=model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    again.save_finetuned(tmp_path / "again")
    assert checkpoint.read(tmp_path / "again").document["parents"][0]["format"] == "gguf"


def test_one_alpha_serves_modules_with_scales_of_their_own_and_with_none(tmp_path):
    model = model_of("llama")
    names = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkvo"]
    patterns = {"rank_pattern": {names[0]: 4}, "alpha_pattern": {names[1]: 0.0, names[2]: -2.0}}
    expected, delta = saved(lora(model, names, lora_alpha=0.1, use_rslora=True, **patterns), tmp_path / "delta")
    path = write(delta, model, tmp_path / "gguf")
    torch.testing.assert_close(llama_cpp("llama", path), expected, rtol=1e-4, atol=1e-4)

    expected, delta = saved(lora(model, names, lora_alpha=0), tmp_path / "off")  # 0 is a scale of 1 in llama.cpp
    path = write(delta, model, tmp_path / "off_gguf")
    torch.testing.assert_close(llama_cpp("llama", path), expected)
    with pytest.raises(ConfigError, match="do not fit into float32 after scaling"):
        write(replace(delta, document={**delta.document, "lora_alpha": 1e300}), model, tmp_path / "large")


def test_a_lora_on_a_part_of_a_fused_layer_is_written_with_zeros_for_the_rest(tmp_path):
    model = model_of("phi3")
    delta = LoraModel(model, modified_modules=["0.attn.q", "0.attn.v"], common_structure=True, lora_r=2, lora_alpha=3)
    expected, delta = saved(delta, tmp_path / "delta")
    path = write(delta, model, tmp_path / "gguf")
    torch.testing.assert_close(llama_cpp("phi3", path), expected, rtol=1e-4, atol=1e-4)


def test_the_metadata_is_that_of_llama_cpps_own_converter(tmp_path):
    model = model_of("llama")
    delta = lora(model, ["model.layers.0.mlp.up_proj"], lora_alpha=6)
    delta.freeze_module(set_state_dict=True)
    facts = {"backbone_model": "acme/base-1b", "license": "mit"}
    delta.save_finetuned(tmp_path / "delta", center_args=facts)
    delta.remove()
    reader = gguf.GGUFReader(write(checkpoint.read(tmp_path / "delta"), model, tmp_path / "gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    digest = fields.pop("deltahub.delta.digest")
    assert digest == checkpoint.read(tmp_path / "delta").parent["digest"]
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "LoRA of base-1b",
        "general.license": "mit",
        "general.base_model.count": 1,
        "general.base_model.0.name": "base-1b",
        "general.base_model.0.organization": "acme",
        "general.base_model.0.repo_url": "https://huggingface.co/acme/base-1b",
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }


# ----- files of other programs -----


def pair(weight, n_in, n_out, rank=2, seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"lora_a": (rank, n_in), "lora_b": (n_out, rank)}
    return {f"{weight}.{end}": draw.standard_normal(shape).astype(np.float32) for end, shape in shapes.items()}


Q = pair("blk.0.attn_q.weight", 16, 16)


def put(folder, tensors, alpha=4.0, arch="llama", dtypes=None, fields=(), name="lora.gguf", kind="adapter"):
    """Write a file as llama.cpp's converter does."""
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / name, arch)
    writer.add_type(kind)
    for key, value in {"adapter.type": "lora", **dict(fields)}.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for key, values in tensors.items():
        if dtype := (dtypes or {}).get(key):
            writer.add_tensor(key, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / name


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


def loaded(folder, model):
    """Return the logits of a backbone with the adapter of a folder, which is removed again."""
    delta = AutoDeltaModel.from_finetuned(folder, backbone_model=model)
    found = logits(model)
    delta.remove()
    return found


def test_embeddings_and_the_output_layer_are_read_as_llama_cpp_has_them(llama, tmp_path):
    output = pair("output.weight", 16, 40, rank=3)
    table = {"token_embd.weight.lora_a": output["output.weight.lora_b"], "token_embd.weight.lora_b": np.ones((16, 3))}
    path = put(tmp_path / "a", {**output, **{key: t.astype(np.float32) for key, t in table.items()}})
    torch.testing.assert_close(loaded(path.parent, llama), llama_cpp("llama", path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 0.0, 4.0, -1.5])
def test_an_alpha_that_is_0_or_missing_is_a_scale_of_1(llama, tmp_path, alpha):
    scale = alpha / 2 if alpha else 1.0
    expected = put(tmp_path / "a", {**Q, "blk.0.attn_q.weight.lora_b": Q["blk.0.attn_q.weight.lora_b"] * scale}, 2.0)
    path = put(tmp_path / "b", Q, alpha)
    torch.testing.assert_close(loaded(path.parent, llama), llama_cpp("llama", expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_tensors_of_other_dtypes_are_expanded(tmp_path, dtype):
    model = model_of("qwen2", hidden_size=32)
    kind = gguf.GGMLQuantizationType[dtype]
    tensors = pair("blk.0.attn_v.weight", 32, 16, rank=32)
    plain = {key: gguf.quants.dequantize(gguf.quants.quantize(t, kind), kind) for key, t in tensors.items()}
    put(tmp_path / "a", tensors, arch="qwen2", dtypes=dict.fromkeys(tensors, kind))
    put(tmp_path / "b", plain, arch="qwen2")
    assert torch.equal(loaded(tmp_path / "a", model), loaded(tmp_path / "b", model))


def test_a_fused_layer_is_read_for_a_backbone_with_separate_ones(llama, tmp_path):
    fused = pair("blk.0.attn_qkv.weight", 16, 32)
    down, up = fused.values()
    rows = {"q": up[:16], "k": up[16:24], "v": up[24:]}
    names = {leaf: f"blk.0.attn_{leaf}.weight" for leaf in rows}
    separate = {f"{name}.lora_a": down for name in names.values()}
    put(tmp_path / "a", fused)
    put(tmp_path / "b", {**separate, **{f"{names[leaf]}.lora_b": part for leaf, part in rows.items()}})
    assert torch.equal(loaded(tmp_path / "a", llama), loaded(tmp_path / "b", llama))


def test_a_lora_loads_on_the_base_model_too(llama, tmp_path):
    path = put(tmp_path / "a", Q)
    loaded(path.parent, llama)
    base = llama.model
    AutoDeltaModel.from_finetuned(path.parent, backbone_model=base).remove()
    put(tmp_path / "b", pair("output.weight", 16, 40))
    with pytest.raises(CheckpointError, match=r"acts on output\.weight, which this backbone does not have"):
        AutoDeltaModel.from_finetuned(tmp_path / "b", backbone_model=base)


# ----- refusals on reading -----

A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"


@pytest.mark.parametrize(
    ("tensors", "options", "match"),
    [
        (Q, {"kind": "model"}, "is a whole model"),
        (Q, {"fields": {"adapter.type": "cvec"}}, "adapter.type='cvec'"),
        (Q, {"fields": {"adapter.alora.invocation_tokens": [1, 2]}}, "aLoRA"),
        (Q, {"fields": {"adapter.lora.rslora": 1}}, "adapter.lora.rslora=1"),
        (Q, {"fields": {"adapter.lora.alpha": 4}, "alpha": None}, "expected a float"),
        (Q, {"arch": "qwen2"}, "is for the architecture 'qwen2' of llama.cpp, .* has 'llama'"),
        ({A: Q[A]}, {}, "has no blk.0.attn_q.weight.lora_b"),
        ({}, {}, "holds no tensor"),
        (
            {**Q, "blk.0.attn_norm.weight": np.ones(16, np.float32)},
            {},
            "blk.0.attn_norm.weight, which llama.cpp does not",
        ),
        ({**Q, "blk.0.attn_q.weight.dora": np.ones(16, np.float32)}, {}, "not an A or B of a LoRA"),
        (pair("blk.2.attn_q.weight", 16, 16), {}, "blk.2.attn_q.weight, which this backbone does not have"),
        (pair("blk.0.attn_norm.weight", 16, 16), {}, "blk.0.attn_norm.weight, which this backbone"),
        (pair("blk.0.attn_q.weight", 16, 24), {}, r"lora_b is \[24, 2\]; expected \[16, 2\]"),
        (pair("blk.0.attn_q.weight", 8, 16), {}, r"lora_a is \[2, 8\]; expected \[2, 16\]"),
        ({A: Q[A], B: Q[B][:, :1].copy()}, {}, r"lora_a is \[2, 16\]; expected \[1, 16\]"),
        (pair("token_embd.weight", 40, 16), {}, r"lora_a is \[2, 40\]; expected \[40, 2\]"),
        ({A: Q[A].astype(np.int32), B: Q[B]}, {}, "dtype I32, which cannot be read"),
        ({A: Q[A], B: Q[B] * np.inf}, {}, "not finite"),
        ({A: Q[A][None, None].repeat(2, 0), B: Q[B]}, {}, "expected a matrix"),
        ({**Q, **pair("blk.0.attn_qkv.weight", 16, 32)}, {}, "changes model.layers.0.self_attn.q_proj twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_no_delta_equals_is_refused(llama, tmp_path, tensors, options, match):
    put(tmp_path / "a", tensors, **options)
    with untouched(llama), np.errstate(all="ignore"), pytest.raises((CheckpointError, ConfigError), match=match):
        AutoDeltaModel.from_finetuned(tmp_path / "a", backbone_model=llama)


def test_embeddings_that_are_the_output_too_are_refused_both_ways(tmp_path):
    model = model_of("llama", tie_word_embeddings=True)
    for weight in ("token_embd.weight", "output.weight"):
        put(tmp_path / "a", pair(weight, 16, 40))
        with pytest.raises(ConfigError, match="embeddings of this backbone are its output layer too"):
            AutoDeltaModel.from_finetuned(tmp_path / "a", backbone_model=model)
    _, delta = saved(lora(model, ["model.embed_tokens"]), tmp_path / "delta")
    with pytest.raises(ConfigError, match="embeddings of this backbone are its output layer too"):
        write(delta, model, tmp_path / "gguf")


def test_other_backbones_several_files_and_a_missing_package_are_refused(llama, tmp_path, monkeypatch):
    put(tmp_path / "a", Q)
    with pytest.raises(ConfigError, match=r"how llama\.cpp lays out the weights of a bert"):
        AutoDeltaModel.from_finetuned(tmp_path / "a", backbone_model=bert())
    put(tmp_path / "a", Q, name="other.gguf")
    with pytest.raises(CheckpointError, match=r"2 files in GGUF: lora\.gguf, other\.gguf"):
        AutoDeltaModel.from_finetuned(tmp_path / "a", backbone_model=llama)
    (tmp_path / "a" / "other.gguf").unlink()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'deltahub\[gguf\]'"):
        AutoDeltaModel.from_finetuned(tmp_path / "a", backbone_model=llama)


@pytest.fixture(scope="module")
def intact(llama, tmp_path_factory):
    """An adapter's bytes, a folder to damage it in, and its tensors."""
    path = put(tmp_path_factory.mktemp("gguf") / "a", Q)
    return path.read_bytes(), path, dict(reading.read(path.parent, llama).tensors)


@given(position=st.integers(0, 340), flipped=st.integers(1, 255))
def test_a_damaged_header_is_refused_or_changes_no_shape(llama, intact, position, flipped):
    content, path, tensors = intact
    damaged = bytearray(content)
    damaged[position] ^= flipped
    path.write_bytes(damaged)
    found = tensors
    with contextlib.suppress(CheckpointError, ConfigError):
        found = reading.read(path.parent, llama).tensors
    # A name can become that of another layer of the same shape.
    assert sorted(tuple(t.shape) for t in found.values()) == sorted(tuple(t.shape) for t in tensors.values())


@pytest.mark.parametrize(("rows", "match"), [(3, "expected"), (1, "expected"), (1 << 60, "expected"), (0, "is empty")])
def test_a_header_that_lies_about_a_shape_is_refused_by_the_recogniser_too(llama, intact, tmp_path, rows, match):
    content, _, _ = intact
    stated = A.encode() + struct.pack("<IQQ", 2, 16, 2)
    assert stated in content
    (tmp_path / "lora.gguf").write_bytes(content.replace(stated, A.encode() + struct.pack("<IQQ", 2, 16, rows)))
    with pytest.raises(CheckpointError, match=match):
        reading.read(tmp_path, llama)
    with pytest.raises(CheckpointError, match=match) if rows else contextlib.nullcontext():
        holds_delta(tmp_path)


# ----- refusals on writing -----


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda m: IA3Model(m, modified_modules=["attn.k"]),
            "LoRA only, and this delta is of the type ia3.*--as-lora RANK",
        ),
        (lambda m: lora(m, ["lm_head"], use_dora=True), "this delta is of the type DoRA"),
        (lambda m: lora(m, ["model.layers.0.mlp.up_proj"], use_bias=True), "biases of B"),
    ],
)
def test_a_delta_that_is_not_a_plain_lora_is_not_written(llama, tmp_path, make, match):
    _, delta = saved(make(llama), tmp_path / "delta")
    with pytest.raises(ConfigError, match=match):
        write(delta, llama, tmp_path / "gguf")


def test_trained_tensors_positions_and_an_unknown_backbone_are_not_written(llama, tmp_path):
    delta = lora(llama, ["model.layers.0.mlp.up_proj"])
    delta.freeze_module(exclude=["deltas", "lm_head"], set_state_dict=True)
    delta.save_finetuned(tmp_path / "head")
    delta.remove()
    with pytest.raises(ConfigError, match=r"also trained lm_head.weight.*replaces no tensor"):
        write(checkpoint.read(tmp_path / "head"), llama, tmp_path / "gguf")

    gpt2 = model_of("gpt2")
    _, delta = saved(lora(gpt2, ["transformer.wpe"]), tmp_path / "positions")
    with pytest.raises(ConfigError, match=r"no LoRA on transformer\.wpe of this GPT2LMHeadModel"):
        write(delta, gpt2, tmp_path / "gguf")
    with pytest.raises(ConfigError, match=r"Only the backbone tells how llama\.cpp names"):
        write(delta, None, tmp_path / "gguf")
    with pytest.raises(ConfigError, match="weights of a bert"):
        write(delta, bert(), tmp_path / "gguf")
    _, delta = saved(lora(gpt2, ["transformer.h.0.attn.c_proj"]), tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="is from 16 to 16 values, and the layer from 32 to 32"):
        write(delta, model_of("gpt2", n_embd=32), tmp_path / "gguf")


def test_a_written_file_needs_no_values_of_the_backbone(llama, tmp_path):
    expected, delta = saved(lora(llama, ["model.layers.0.self_attn.q_proj"], lora_alpha=3), tmp_path / "delta")
    llama.config.save_pretrained(tmp_path / "config")
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "lora.gguf").write_bytes(
        files_of(Format.GGUF, delta, Backbone.of(delta, str(tmp_path / "config")))["lora.gguf"]
    )
    before = tensors_of(llama)
    torch.testing.assert_close(loaded(folder, llama), expected)
    assert equal(before, tensors_of(llama))
    assert Architecture.of(llama).name == "llama"
