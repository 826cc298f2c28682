"""The model card: `README.md` with the front matter for the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.default_name import backbone_name, method_of
from deltahub.checkpoint.description import method_title, module_addresses, quantisation_text

# The library that reads a format, by its name on the Hugging Face Hub.
_LIBRARIES: Final = {"peft": "peft", "adapters": "adapter-transformers", "diffusers": "diffusers", "gguf": "gguf"}


def model_card(document: Mapping[str, Any], counts: Mapping[str, int], backbone: Fingerprint | None = None) -> str:
    """Build the card of a checkpoint.

    Args:
        document: its config with metadata.
        counts: ``delta`` and ``total``, numbers of parameters, and ``fixed``, those of the delta that do not train.
        backbone: the record of its backbone; None if unknown.
    """
    quantisation = quantisation_text(backbone) if backbone else ""
    front, text = _data(document).to_yaml(), _text(_title(document), document, counts, quantisation)
    return f"{ModelCard(f'---{chr(10)}{front}{chr(10)}---{chr(10)}{text}')}"


def front_matter(document: Mapping[str, Any]) -> dict[str, Any]:
    """Build a card's front matter for the Hugging Face Hub: library, base model, license, data, tags and results.

    Args:
        document: the config of a checkpoint with metadata.
    """
    data: Any = _data(document)
    return dict(data.to_dict())


def _data(document: Mapping[str, Any]) -> ModelCardData:
    metadata = document.get("metadata", {})
    own_base = document.get("backbone_checkpoint_name") or document.get("base_model")  # never a class name
    base = metadata.get("backbone_model") or own_base
    base, results = (base if _is_id(base) else None), _eval_results(metadata)
    return ModelCardData(
        library_name=_LIBRARIES.get(document.get("format", ""), "deltahub"),
        license=metadata.get("license"),
        base_model=base,
        base_model_relation="adapter" if base else None,
        datasets=[name for name in metadata.get("train_datasets", ()) if _is_id(name)] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        tags=list(dict.fromkeys(("deltahub", method_of(document), *metadata.get("tags", [])))),
        model_name=_title(document) if results else None,
        eval_results=results or None,
    )


def _title(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata", {})
    task = " ".join([*metadata.get("train_tasks", [])[:1], method_of(document)])
    return str(metadata.get("name") or f"{task} for {backbone_name(document) or 'its backbone'}")


def _is_id(name: str | None) -> bool:
    """Return whether a name is valid for a repo: the Hub refuses a card that gives a folder or a sentence as one."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return True


def _eval_results(metadata: Mapping[str, Any]) -> list[EvalResult]:
    tasks = metadata.get("test_tasks") or metadata.get("train_tasks")
    datasets = metadata.get("test_datasets") or metadata.get("train_datasets")
    if not tasks or not datasets:  # the Hub shows a result only with both
        return []
    return [
        EvalResult(
            task_type=tasks[0], dataset_type=datasets[0], dataset_name=datasets[0], metric_type=name, metric_value=value
        )
        for name, value in sorted(metadata.get("test_result", {}).items())
    ]


def _text(title: str, document: Mapping[str, Any], counts: Mapping[str, int], quantisation: str) -> str:
    metadata = document.get("metadata", {})
    backbone = backbone_name(document) or "its backbone"
    revision, parents = document.get("backbone_revision"), document.get("parents", ())
    fixed = counts.get("fixed", 0)
    package = document.get("delta_package")  # of a method that is not built in
    rows = [
        ("method", f"{document['delta_type']} (package {package})" if package else method_title(document)),
        ("backbone", f"{backbone} ({document.get('backbone_class') or 'unknown class'})"),
        *([("backbone revision", revision)] if revision else []),
        ("backbone fingerprint", document.get("backbone_hash") or "unknown"),
        *([("backbone quantisation", quantisation)] if quantisation else []),
        (
            "modules",
            ", ".join(f"`{name}`" for name in module_addresses(document)) or "chosen by the method",
        ),
        ("parameters of the delta", f"{counts['delta'] - fixed:,}"),
        *([("fixed values of the delta", f"{fixed:,}")] if fixed else []),
        ("parameters in the file", f"{counts['total']:,}"),
        *((f"{parent['relation']} from", f"`{parent.get('name') or parent['digest']}`") for parent in parents),
        *((f"test {name}", value) for name, value in sorted(metadata.get("test_result", {}).items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    about = f"\n{metadata['description']}\n" if "description" in metadata else ""
    usage = f"\n{metadata['usage']}\n" if "usage" in metadata else ""
    return f"""
# {title}
{about}
| | |
| --- | --- |
{table}

## Use
{usage}
```python
from deltahub import AutoDeltaModel

delta = AutoDeltaModel.from_finetuned("path/or/reference", backbone_model=model)  # model: {backbone}
```
"""
