"""Deltas in the formats of other libraries, described from their own files without torch.

    peft        adapter_config.json with a peft_type          adapter_model.safetensors, or .bin
    adapters    adapter_config.json of AdapterHub             adapter.safetensors or pytorch_adapter.bin, and a head
    opendelta   config.json with a delta_type                 pytorch_model.bin
    diffusers   names of LoRA tensors in a safetensors file   that file; kohya and LyCORIS have names of their own
    gguf        general.type is "adapter"                     a *.gguf file

Each is stored as it is. The facts found here are searched and shown; reading the tensors for use is the task of
`deltahub.formats`, which checks everything again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from deltahub.checkpoint.checkpoint import BACKBONE, CARD, LARGEST_CONFIG, PICKLE
from deltahub.checkpoint.gguf_header import Header, read_header
from deltahub.checkpoint.manifest import Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_entries
from deltahub.errors import CheckpointError, ReferenceSyntaxError
from deltahub.files.documents import canonical_json, parse
from deltahub.reference import check_tag
from deltahub.text.front_matter import LARGEST, front_matter, texts

Read = Callable[[str, int, int], bytes]  # reads a file's bytes from the first position to before the second
ADAPTER_CONFIG: Final = "adapter_config.json"
MODEL_CONFIG: Final = "config.json"
LONGEST_HEADER: Final = 16 << 20  # maximum bytes of a safetensors header to read
FORMATS: Final = ("peft", "adapters", "opendelta", "diffusers", "kohya", "gguf")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER: Final = (  # an adapter with new tokens cannot be used without its tokenizer
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_HUB: Final = "https://huggingface.co/"
_LONGEST_OPTIONS: Final = 64 << 10  # bytes of the options of a config to keep for search
# The names of a LoRA's tensors in diffusers, kohya and LyCORIS.
_LORA_NAME: Final = re.compile(
    r".*(?:lora_(?:A|B|down|up)(?:\.[^.]+)?\.weight|lora_B(?:\.[^.]+)?\.bias"
    r"|lora(?:_linear_layer)?\.(?:down\.weight|up\.(?:weight|bias))"
    r"|\.alpha|dora_scale|lora_magnitude_vector(?:\.[^.]+)?"
    r"(?:\.weight)?|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?|lora_mid\.weight)"
)
_DOWN: Final = re.compile(r".*(?:lora_(?:A|down)(?:\.[^.]+)?|lora(?:_linear_layer)?\.down)\.weight")


@dataclass(frozen=True)
class Foreign:
    """A delta in the format of another library.

    Attributes:
        format: the name of the format, as in the table above.
        files: its own files; others in the same folder do not belong to it.
        config: the facts for its manifest: format, method, options, base model, and what its card states as `metadata`.
        missing: a file that it lacks; empty if it is complete.
        metrics: test results on its card, in the form of huggingface_hub's EvalResult.
        tensors: its tensors, for a file that is not safetensors.
    """

    format: str
    files: tuple[str, ...]
    config: Mapping[str, Any]
    missing: str = ""
    metrics: tuple[Mapping[str, Any], ...] = ()
    tensors: tuple[TensorEntry, ...] = ()

    @property
    def pickles(self) -> tuple[str, ...]:
        """Its files that are Python pickles."""
        return tuple(name for name in self.files if name.endswith(_PICKLES))


def recognise(sizes: Mapping[str, int], read: Read) -> Foreign | None:
    """Return the delta of another library among files; None if there is none.

    Args:
        sizes: the files, with their sizes in bytes; only those at the top level count.
        read: reads a range of a file.

    Raises:
        CheckpointError: an adapter in GGUF holds other tensors than its header states.
    """
    files = _Files({name: size for name, size in sizes.items() if "/" not in name}, read)
    for recogniser in (_peft, _adapters, _opendelta, _diffusers, _gguf):
        if foreign := recogniser(files):
            return files.completed(foreign)
    return None


def has_unread(manifest: Manifest) -> bool:
    """Return whether weights of a delta are a pickle, which is not opened, so that its parameters are not counted."""
    pickled = any(entry.path.endswith(_PICKLES) for entry in manifest.files)
    return pickled and (not manifest.tensors or manifest.config.get("format") in FORMATS)


@dataclass(frozen=True)
class _Files:
    """The files at the top level of a folder.

    Attributes:
        sizes: name to size in bytes.
        read: reads a range of a file.
    """

    sizes: Mapping[str, int]
    read: Read

    def object(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; empty if there is none."""
        size = self.sizes.get(name, 0)
        if not 0 < size <= LARGEST_CONFIG:
            return {}
        try:
            document = parse(self.read(name, 0, size))
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def table(self, name: str) -> tuple[TensorEntry, ...]:
        """Return the tensors of a safetensors file; empty if it cannot be read."""
        with contextlib.suppress(CheckpointError):
            return tensor_entries(
                lambda start, end: self.read(name, start, end), self.sizes[name], name, LONGEST_HEADER
            )
        return ()

    def present(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the names that exist."""
        return tuple(name for name in names if name in self.sizes)

    def first(self, *names: str) -> tuple[str, ...]:
        """Return the first of the names that exists; empty if none does."""
        return self.present(names)[:1]

    def completed(self, foreign: Foreign) -> Foreign:
        """Add the card, its facts, the tokenizer, and the record of the backbone."""
        config, metrics = dict(foreign.config), foreign.metrics
        if self.sizes.get(CARD):
            head = self.read(CARD, 0, min(self.sizes[CARD], LARGEST)).decode(errors="replace")
            with contextlib.suppress(ValueError):
                card = front_matter(head)
                metadata, metrics = _metadata(card), _metrics(card)
                config |= {"metadata": metadata} if metadata else {}
                named = texts(card.get("base_model"))
                if named and is_path(config.get("base_model")):
                    config["base_model"] = named[0]
        if isinstance(backbone_hash := self.object(BACKBONE).get("hash"), str):
            config["backbone_hash"] = backbone_hash
        files = tuple(sorted((*foreign.files, *self.present((BACKBONE, CARD, *TOKENIZER)))))
        return replace(foreign, files=files, config=config, metrics=metrics)


def _peft(files: _Files) -> Foreign | None:
    config = files.object(ADAPTER_CONFIG)
    if not isinstance(config.get("peft_type"), str):
        return None
    apart = ("peft_type", "base_model_name_or_path", "task_type", "revision", "peft_version", "inference_mode")
    facts = {
        "peft_type": config["peft_type"],
        "base_model": config.get("base_model_name_or_path"),
        "base_revision": config.get("revision"),
        "task_type": config.get("task_type"),
        "peft_version": config.get("peft_version"),
        "options": _options({key: value for key, value in config.items() if key not in apart}),
    }
    weights = ("adapter_model.safetensors", "adapter_model.bin")
    return _foreign("peft", facts, (ADAPTER_CONFIG, *files.first(*weights)), _lacking(files, weights))


def _adapters(files: _Files) -> Foreign | None:
    config = files.object(ADAPTER_CONFIG)
    options = config.get("config")
    if "peft_type" in config or not isinstance(options, dict | str):
        return None
    head = (*files.first("head_config.json"), *files.first("model_head.safetensors", "pytorch_model_head.bin"))
    stated = options if isinstance(options, dict) else {"architecture": options}
    facts = {
        "method": stated.get("architecture") or "bottleneck",
        "base_model": config.get("model_name"),
        "model_class": config.get("model_class"),
        "adapters_version": config.get("version"),
        "options": _options(stated),
    }
    weights = ("adapter.safetensors", "pytorch_adapter.bin")
    return _foreign("adapters", facts, (ADAPTER_CONFIG, *files.first(*weights), *head), _lacking(files, weights))


def _opendelta(files: _Files) -> Foreign | None:
    config = files.object(MODEL_CONFIG)
    if not isinstance(config.get("delta_type"), str):
        return None
    apart = ("delta_type", "backbone_class", "backbone_checkpoint_name", "backbone_hash")
    facts = {
        "method": config["delta_type"],
        "base_model": config.get("backbone_checkpoint_name"),
        "model_class": config.get("backbone_class"),
        "options": _options({key: value for key, value in config.items() if key not in apart}),
    }
    return _foreign("opendelta", facts, (MODEL_CONFIG, *files.first(PICKLE)), _lacking(files, (PICKLE,)))


def _diffusers(files: _Files) -> Foreign | None:
    names = [name for name in files.sizes if name.endswith(".safetensors")]
    if len(names) != 1 or {MODEL_CONFIG, ADAPTER_CONFIG} & files.sizes.keys():
        return None
    table = files.table(names[0])
    if not table or not all(_LORA_NAME.fullmatch(entry.name) for entry in table):
        return None
    ranks = [entry.shape[0] for entry in table if _DOWN.fullmatch(entry.name) and entry.shape]
    methods = {"hada_": "loha", "lokr_": "lokr"}
    method = next((value for key, value in methods.items() if any(key in entry.name for entry in table)), "lora")
    kohya = any(entry.name.startswith(("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")) for entry in table)
    facts = {"method": method, "options": {"r": max(ranks)} if ranks else {}}
    return _foreign("kohya" if kohya else "diffusers", facts, (names[0],))


def _gguf(files: _Files) -> Foreign | None:
    names = [name for name in files.sizes if name.endswith(".gguf")]
    if len(names) != 1:
        return None
    try:
        header = read_header(lambda start, end: files.read(names[0], start, end), files.sizes[names[0]], names[0])
    except CheckpointError:
        return None
    if header.metadata.get("general.type") != "adapter":
        return None
    header.places(files.sizes[names[0]], names[0])
    return replace(_foreign("gguf", _gguf_facts(header), (names[0],)), tensors=header.tensors)


def _gguf_facts(header: Header) -> dict[str, Any]:
    metadata = header.metadata
    ranks = [entry.shape[0] for entry in header.tensors if entry.name.endswith(".lora_a") and entry.shape]
    alpha = metadata.get("adapter.lora.alpha")
    options = {"r": max(ranks, default=None), "lora_alpha": alpha}
    return {
        "method": metadata.get("adapter.type") or "lora",
        "base_model": _gguf_base(metadata),
        "model_type": metadata.get("general.architecture"),
        "options": {key: value for key, value in options.items() if value is not None},
    }


def _gguf_base(metadata: Mapping[str, Any]) -> Any:
    """Return the model id of a base model that is in the hub of Hugging Face, else its name."""
    url = metadata.get("general.base_model.0.repo_url")
    if isinstance(url, str) and (name := url.removeprefix(_HUB).strip("/")).count("/") == 1 and url.startswith(_HUB):
        return name
    return metadata.get("general.base_model.0.name")


def _foreign(name: str, facts: Mapping[str, Any], files: tuple[str, ...], missing: str = "") -> Foreign:
    """Build a foreign delta; of the facts only texts and options that are set are kept."""
    kept = {key: value for key, value in facts.items() if (isinstance(value, str) or key == "options") and value}
    return Foreign(name, files, {"format": name, **kept}, missing)


def _lacking(files: _Files, names: tuple[str, ...]) -> str:
    """Return the first of the names if no file has any of them."""
    return "" if files.first(*names) else names[0]


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a config that are set; without the longest ones if they are too long to keep."""
    options = {key: value for key, value in sorted(config.items()) if value not in (None, False, "", [], {})}
    lengths = {key: len(canonical_json({key: value})) for key, value in options.items()}
    total = sum(lengths.values())
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        if total <= _LONGEST_OPTIONS:
            break
        total -= lengths[key]
        del options[key]
    return options


def is_path(name: Any) -> bool:
    """Return whether a base model is missing or named by a local path, which says nothing elsewhere."""
    return not isinstance(name, str) or name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1


def _metadata(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a card in the form of a checkpoint's metadata."""
    tags = sorted({tag for tag in texts(card.get("tags")) if ":" not in tag and _is_tag(tag)})
    facts = {
        "license": card.get("license"),
        "tags": tags,
        "train_datasets": texts(card.get("datasets")),
    }
    return {key: value for key, value in facts.items() if value and isinstance(value, str | list)}


def _is_tag(text: str) -> bool:
    try:
        check_tag(text)
    except ReferenceSyntaxError:
        return False
    return True


def _metrics(card: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the test results in the model-index of a card."""
    metrics = []
    for model in _objects(card.get("model-index")):
        for result in _objects(model.get("results")):
            labels = {"task_type": _of(result.get("task"), "type"), "dataset_name": _of(result.get("dataset"), "name")}
            labels = {key: value for key, value in labels.items() if isinstance(value, str)}
            for metric in _objects(result.get("metrics")):
                name, value = metric.get("type"), metric.get("value")
                if isinstance(name, str) and isinstance(value, int | float | str) and not isinstance(value, bool):
                    metrics.append({**labels, "metric_type": name, "metric_value": value})
    return tuple(metrics)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _of(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None
