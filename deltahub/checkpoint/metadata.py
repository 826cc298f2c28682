"""Author's metadata for a delta: task, data, results, usage. It is saved with the config and shown on the model card.

The keys are those of OpenDelta's center_args, so that its scripts run unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from deltahub.checkpoint.config import SCHEMA
from deltahub.errors import ConfigError
from deltahub.files.documents import load_schema
from deltahub.reference import check_tag
from deltahub.text.suggestions import suggest

# Other names for the same facts in training scripts.
_ALIASES: Final = {
    "train_task": "train_tasks",
    "task_name": "train_tasks",
    "train_dataset": "train_datasets",
    "dataset": "train_datasets",
    "dataset_name": "train_datasets",
    "test_task": "test_tasks",
    "test_dataset": "test_datasets",
    "test_metric": "test_metrics",
}
_IGNORED: Final = frozenset({"delta_type", "checkpoint_size", "trainable_ratio"})  # in the checkpoint already


def gather(
    center_args: Mapping[str, Any],
    center_args_pool: Mapping[str, Any],
    list_tags: Sequence[str],
    dict_tags: Mapping[str, Any],
    test_result: Mapping[str, Any] | float | None,
    usage: str,
) -> dict[str, Any]:
    """Collect the metadata of a checkpoint.

    Args:
        center_args: the known facts, with the keys of the config schema's metadata.
        center_args_pool: more facts, such as a script's arguments; unknown keys are ignored.
        list_tags: labels.
        dict_tags: key=value tags.
        test_result: metric name to value, or one number.
        usage: instructions for using the delta.

    Raises:
        ConfigError: `center_args` has an unknown key, or a test result is not a finite number.
        ReferenceSyntaxError: a tag is not well formed.
    """
    properties = load_schema(SCHEMA)["definitions"]["metadata"]["properties"]
    metadata: dict[str, Any] = {}
    for source, strict in ((center_args_pool, False), (center_args, True)):
        for key, value in source.items():
            name = _ALIASES.get(key, key)
            if name in properties:
                metadata[name] = _fitting(properties[name], value)
            elif strict and name not in _IGNORED:
                msg = f"center_args has no key {key!r}: {suggest(key, properties)}"
                raise ConfigError(msg)
    if test_result is not None:
        metadata["test_result"] = test_result if isinstance(test_result, Mapping) else {"performance": test_result}
    if isinstance(metadata.get("test_result"), Mapping):
        metadata["test_result"] = {key: _metric(key, value) for key, value in metadata["test_result"].items()}
    if usage:
        metadata["usage"] = usage
    tags = [*metadata.get("tags", ()), *list_tags, *(f"{key}={value}" for key, value in dict_tags.items())]
    if tags:
        metadata["tags"] = sorted({check_tag(str(tag)) for tag in tags})
    return {key: value for key, value in metadata.items() if value not in (None, "", [], {})}


def _fitting(schema: Mapping[str, Any], value: Any) -> Any:
    """Wrap a single text in a list if the schema requires a list."""
    wants_list = schema.get("type") == "array" or schema.get("$ref", "").endswith("/texts")
    if wants_list and isinstance(value, str):
        return [value]
    if wants_list and isinstance(value, Iterable):
        return list(value)
    return _plain(value)


def _metric(name: str, value: Any) -> float:
    """Return the value of a metric as a Python number."""
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        msg = f"test_result[{name!r}] is {value!r}; expected a finite number."
        raise ConfigError(msg)
    return number


def _plain(value: Any) -> Any:
    """Convert a number of numpy or torch to a Python number, which JSON supports."""
    return value.item() if hasattr(value, "item") else value
