"""Delta configs: frozen, strict, and described by `schemas/delta_config.v1.json`.

A config class has one field for each option of its method. Every value is checked against the schema when a config is created,
so every existing config is valid. A type of another package has no entry in the schema: its config class gives the schema of its
options (`checkpoint/options.py`), as it does for a built-in type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Final, Self

from deltahub.checkpoint.address import ALL_LINEAR, check_patterns
from deltahub.checkpoint.options import Index, options_of
from deltahub.errors import ConfigError
from deltahub.files.documents import compiled, load_schema, problem, shown
from deltahub.text.suggestions import suggest

SCHEMA: Final = "delta_config.v1"
_NEVER_ODD: Final = frozenset({str, bool, int, type(None)})  # types of values that need no check beside the schema's
FORMAT_VERSION: Final = 1
# Keys of delta_config.json that describe the checkpoint rather than the delta.
CHECKPOINT_KEYS: Final = frozenset(
    {
        "format_version",
        "deltahub_version",
        "transformers_version",
        "torch_version",
        "backbone_revision",
        "parents",
        "lineage",
        "delta_type",
        "delta_package",
        "metadata",
        "files",
    }
)


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Options common to all deltas: their modules and their backbone.

    Args:
        modified_modules: addresses of the modules to put the delta on (`deltahub.checkpoint.address`), or ``"all-linear"`` for every
            linear layer but the output head; None for the method's default.
        exclude_modules: addresses of modules to leave out with everything inside; None for the method's default.
        unfrozen_modules: the modules that `freeze_module` leaves trainable; ``"deltas"`` means the delta's own parameters.
        common_structure: True to read addresses as common names, False as real names, None as whichever matches.
        layers_to_transform: numbers of the blocks to put the delta on, instead of all; a delta expresses them in its `exclude_modules`.
        strength: factor of what the delta changes, for methods that can act by a share; it is set with ``delta.scale``.
        backbone_class: class name of the backbone, e.g. ``"BertModel"``.
        backbone_checkpoint_name: name of the backbone's checkpoint, e.g. ``"bert-base-uncased"``.
        backbone_hash: fingerprint of the backbone's tensors that the delta does not change (32 hex digits).

    Raises:
        ConfigError: the value of an option is invalid.
        AddressError: a regular expression among the addresses cannot be matched (`deltahub.text.patterns`).
    """

    modified_modules: Sequence[str] | None = None
    exclude_modules: Sequence[str] | None = None
    unfrozen_modules: Sequence[str] | None = ("deltas",)
    common_structure: bool | None = None
    layers_to_transform: Sequence[Index] | None = None
    strength: float = 1.0
    backbone_class: str = ""
    backbone_checkpoint_name: str = ""
    backbone_hash: str | None = None

    delta_type: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.modified_modules == ALL_LINEAR:
            object.__setattr__(self, "modified_modules", (ALL_LINEAR,))
        blocks: Any = self.layers_to_transform
        if type(blocks) is int:
            object.__setattr__(self, "layers_to_transform", (blocks,))
        for key in ("modified_modules", "exclude_modules", "unfrozen_modules"):
            object.__setattr__(self, key, as_names(key, getattr(self, key)))
        for key, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, key, tuple(value))  # which the caller cannot change
        if self.delta_type:
            check_document({"format_version": FORMAT_VERSION, **self.to_dict()}, type(self))
        for value in vars(self).values():
            if isinstance(value, (tuple, Mapping)):
                check_patterns(pattern for pattern in value if isinstance(pattern, str))

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.layers_to_transform is None:
            del values["layers_to_transform"]  # older releases do not know it
        if self.strength == 1.0 and type(self.strength) is float:
            del values["strength"]
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"delta_type": self.delta_type, **lists}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **overrides: Any) -> Self:
        """Read a config from JSON types, ignoring keys that describe the checkpoint as a whole.

        Args:
            overrides: options that replace those of `document`.

        Raises:
            ConfigError: a key is unknown, or a value is invalid.
        """
        if (delta_type := document.get("delta_type", cls.delta_type)) != cls.delta_type:
            msg = f"This config is of type {delta_type!r}, not {cls.delta_type!r}. AutoDeltaConfig.from_dict finds its class."
            raise ConfigError(msg)
        options = {key: value for key, value in document.items() if key not in CHECKPOINT_KEYS} | overrides
        refuse_unknown(options, {field.name for field in fields(cls)}, cls.delta_type)
        return cls(**options)


BaseDeltaConfig = DeltaConfig  # its name in OpenDelta


def as_names(key: str, value: Any) -> tuple[str, ...] | None:
    """Return a list of names as a tuple, which the caller cannot change; None stays None.

    Raises:
        ConfigError: it is one string, or no list.
    """
    if value is None:
        return None
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
        msg = (
            f"{key} must be a list of names, got {shown(value)}; for one name write [{json.dumps(shown(value)[1:-1])}]."
        )
        raise ConfigError(msg)
    return tuple(value)


def known_types() -> tuple[str, ...]:
    """Return the built-in delta types."""
    return tuple(load_schema(SCHEMA)["definitions"]["types"])


def unknown_type(delta_type: object, types: Collection[str]) -> ConfigError:
    """Return the error for a delta type that neither is built in nor comes from an installed package."""
    hint = suggest(shown(delta_type).strip("'"), types)
    return ConfigError(f"delta_type is {shown(delta_type)}, which this version does not know: {hint}")


def refuse_unknown(options: Mapping[str, Any], option_names: set[str], owner: str) -> None:
    """Raise `ConfigError` for the first unknown option, suggesting the nearest known one."""
    for key in options:
        if key not in option_names:
            msg = f"{owner} has no option {shown(key)}: {suggest(key, option_names)}"
            raise ConfigError(msg)


def check_document(document: Mapping[str, Any], config_class: type | None = None) -> None:
    """Check a whole `delta_config.json` against the schema.

    The options of a type of another package are checked only with its config class: the package may not be installed.

    Args:
        config_class: the class of the config, if it is known.

    Raises:
        ConfigError: the delta type or a key is unknown, or a value is invalid.
    """
    schema = load_schema(SCHEMA)
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = f"This delta has format_version {version}; this deltahub reads {FORMAT_VERSION}. Update deltahub to load it."
        raise ConfigError(msg)
    delta_type, types = document.get("delta_type"), known_types()
    validator: str | Callable[[Any], Any] = SCHEMA
    if isinstance(delta_type, str) and delta_type in types:
        options = schema["definitions"]["types"][delta_type]["properties"]
        refuse_unknown(document, {*schema["properties"], *options} - {"delta_package"}, delta_type)
    elif config_class is not None:
        options, validator = _own_options(config_class), _validator(config_class)
    elif "delta_package" in document:
        options = {}
    else:
        raise unknown_type(delta_type, types)
    schema = {**schema, "properties": schema["properties"] | options}
    if wrong := next(_odd_numbers(document, schema, ""), None) or problem(document, validator):
        msg = f"The {delta_type} config cannot work: {wrong}."
        raise ConfigError(msg)


@cache
def _own_options(config_class: type) -> Mapping[str, Mapping[str, Any]]:
    """Return the schema of the options that a config class adds to the common ones.

    Raises:
        ConfigError: an option has the name of a common key with another meaning.
    """
    common = load_schema(SCHEMA)["properties"]
    options = options_of(config_class)
    own_options = {key: schema for key, schema in options.items() if key not in options_of(DeltaConfig)}
    if taken := sorted(own_options.keys() & common.keys()):
        msg = f"{config_class.__name__} has an option {taken[0]!r}, which in every delta_config.json means something else. Rename it."
        raise ConfigError(msg)
    return own_options


@cache
def _validator(config_class: type) -> Callable[[Any], Any]:
    schema = load_schema(SCHEMA)
    return compiled({**schema, "properties": schema["properties"] | _own_options(config_class)})


def _odd_numbers(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield the faults that JSON Schema accepts: 8.0 for an integer, and NaN or infinity; at any depth."""
    if "$ref" in schema:
        schema = load_schema(SCHEMA)["definitions"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, float):
        types = schema.get("type", ())
        if not math.isfinite(value):
            yield f"{place} must be of type number, got {value}"
        elif "integer" in ([types] if isinstance(types, str) else types):
            yield f"{place} must be of type integer, got {value}"
    elif isinstance(value, Mapping):
        members, rest = schema.get("properties", {}), schema.get("additionalProperties") or {}
        for key, inner in value.items():
            if type(inner) not in _NEVER_ODD:
                yield from _odd_numbers(inner, members.get(key, rest), f"{place}.{key}" if place else key)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            if type(inner) not in _NEVER_ODD:
                yield from _odd_numbers(inner, schema.get("items") or {}, f"{place}[{index}]")
