"""Tiny random backbones, the same on every run, and helpers of tests for models with deltas.

Building one takes milliseconds and needs no network; a batch of two inputs for each is `inputs_for(backbone)`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_TEXT: Final = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


class Template:
    """A model of which new ones are made: in a fifth of the time that it takes to build one or to deepcopy it.

    The modules are unpickled, and each gets tensors of its own; weights that are tied stay tied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[Tensor] = []
        places: dict[int, int] = {}

        def place_of(value: object) -> int | None:
            if not isinstance(value, Tensor):
                return None
            if id(value) not in places:
                places[id(value)] = len(self._tensors)
                self._tensors.append(value)
            return places[id(value)]

        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.persistent_id = place_of  # type: ignore[method-assign]
        pickler.dump(model)
        self._modules = file.getvalue()

    def __call__(self) -> Any:
        """Return a new model like the first."""
        tensors = [_copy(tensor) for tensor in self._tensors]
        unpickler = pickle.Unpickler(io.BytesIO(self._modules))
        unpickler.persistent_load = tensors.__getitem__  # type: ignore[method-assign]
        return unpickler.load()


def _copy(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def built_once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorate a function that builds a model: called again with equal arguments, it returns another one like it."""
    templates: dict[str, Template] = {}

    @wraps(build)
    def new(*args: Any, **options: Any) -> nn.Module:
        key = repr((args, options))
        if key not in templates:
            first = build(*args, **options)
            if any(map(is_parametrized, first.modules())):  # PyTorch does not pickle these
                return first
            templates[key] = Template(first)
        model: nn.Module = templates[key]()
        return model

    return new


@built_once
def _make(kind: str, seed: int = 0, **options: Any) -> nn.Module:
    cls: Any = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = cls(cls.config_class(**options))
        for parameter in model.parameters():  # larger than real weights, so that nothing hides below rounding
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def bert(seed: int = 0, **changes: Any) -> nn.Module:
    """Build a BERT with a classifier of three classes."""
    return _make(
        "BertForSequenceClassification", seed, **{**_TEXT, **changes}, max_position_embeddings=12, num_labels=3
    )


def bert_mlm(seed: int = 0, **changes: Any) -> nn.Module:
    """Build a BERT with its language-model head, whose weight is the embedding's."""
    return _make("BertForMaskedLM", seed, **_TEXT, max_position_embeddings=12, **changes)


def gpt2(seed: int = 0) -> nn.Module:
    """Build a GPT-2 with a tied head and fused q, k, v."""
    return _make("GPT2LMHeadModel", seed, vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=12, bos_token_id=0)


def t5(seed: int = 0, **changes: Any) -> nn.Module:
    """Build a T5 with tied embeddings and layers without biases."""
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return _make("T5ForConditionalGeneration", seed, **sizes, **changes)


def t5_gated(seed: int = 0) -> nn.Module:
    """Build a T5 v1.1, with a gated feed-forward."""
    return t5(seed, feed_forward_proj="gated-gelu")


def llama(seed: int = 0, **changes: Any) -> nn.Module:
    """Build a Llama: RMSNorm, no biases."""
    return _make("LlamaForCausalLM", seed, **{"max_position_embeddings": 12, **_TEXT, **changes})


def vit(seed: int = 0) -> nn.Module:
    """Build a vision transformer with a classifier."""
    sizes = {key: value for key, value in _TEXT.items() if key != "vocab_size"}
    return _make("ViTForImageClassification", seed, **sizes, image_size=8, patch_size=4, num_channels=3)


BACKBONES: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "bert": bert,
    "gpt2": gpt2,
    "t5": t5,
    "t5_gated": t5_gated,
    "llama": llama,
    "vit": vit,
}


def inputs_for(backbone: Any) -> dict[str, Tensor]:
    """Return a batch of two inputs for a backbone."""
    draw = torch.Generator().manual_seed(1)
    like = next(backbone.parameters())
    if backbone.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=draw).to(like.dtype)}
    if backbone.main_input_name == "input_features":
        inputs = {"input_features": torch.randn(2, 4, 16, generator=draw).to(like.dtype)}
    else:
        inputs = {"input_ids": torch.randint(1, 50, (2, 7), generator=draw)}
    if backbone.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(1, 50, (2, 4), generator=draw)
    return inputs


def forward(backbone: nn.Module) -> Tensor:
    """Return the backbone's logits, with gradients."""
    logits: Tensor = backbone(**inputs_for(backbone)).logits
    return logits


def logits_of(backbone: nn.Module) -> Tensor:
    """Return the backbone's logits."""
    with torch.no_grad():
        return forward(backbone)


def train(backbone: nn.Module, steps: int = 1) -> None:
    """Move every trainable parameter by some SGD steps, far enough to see."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(backbone).float().square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def stir(delta: Any, seed: int = 2) -> None:
    """Give every parameter of a delta a value of its own, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors that a model saves."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> bool:
    """Return whether two state dicts have the same names in the same order, and the same bits."""
    return list(expected) == list(actual) and all(torch.equal(expected[name], actual[name]) for name in expected)


def _state(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    return {
        "modules": list(modules),
        "hooks": [
            [len(getattr(m, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")]
            for m in modules.values()
        ],
        "attributes": [sorted(module.__dict__) for module in modules.values()],
        "training": [module.training for module in modules.values()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
    }


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fail if what happens inside leaves any trace on a model: a value, a name, a module, a hook, a flag."""
    state, tensors = _state(model), tensors_of(model)
    yield
    assert state == _state(model)
    assert equal(tensors, tensors_of(model))
