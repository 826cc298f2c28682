"""Delta configs: frozen, strict, and described by `schemas/delta_config.v1.json`.

A config class has one field for each option of its method. Every value is checked against the schema when a config is created,
so every existing config is valid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Self

from deltahub.checkpoint.address import check_patterns
from deltahub.errors import ConfigError
from deltahub.files.documents import load_schema, problem, shown
from deltahub.text.suggestions import suggest

SCHEMA: Final = "delta_config.v1"
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
        "delta_type",
        "metadata",
        "files",
    }
)


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Options common to all deltas: their modules and their backbone.

    Args:
        modified_modules: addresses of the modules to put the delta on (`deltahub.checkpoint.address`); None for the method's default.
        exclude_modules: addresses of modules to leave out with everything inside; None for the method's default.
        unfrozen_modules: the modules that `freeze_module` leaves trainable; ``"deltas"`` means the delta's own parameters.
        common_structure: True to read addresses as common names, False as real names, None as whichever matches.
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
    backbone_class: str = ""
    backbone_checkpoint_name: str = ""
    backbone_hash: str | None = None

    delta_type: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for key in ("modified_modules", "exclude_modules", "unfrozen_modules"):
            object.__setattr__(self, key, as_names(key, getattr(self, key)))
        if self.delta_type in known_types():
            check_document({"format_version": FORMAT_VERSION, **self.to_dict()})
        for value in vars(self).values():
            if isinstance(value, (tuple, Mapping)):
                check_patterns(value)

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
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
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        msg = (
            f"{key} must be a list of names, got {shown(value)}; for one name write [{json.dumps(shown(value)[1:-1])}]."
        )
        raise ConfigError(msg)
    return tuple(value)


def known_types() -> tuple[str, ...]:
    """Return the delta types that a checkpoint can hold."""
    return tuple(load_schema(SCHEMA)["properties"]["delta_type"]["enum"])


def refuse_unknown(options: Mapping[str, Any], option_names: set[str], owner: str) -> None:
    """Raise `ConfigError` for the first unknown option, suggesting the nearest known one."""
    for key in options:
        if key not in option_names:
            msg = f"{owner} has no option {shown(key)}: {suggest(key, option_names)}"
            raise ConfigError(msg)


def check_document(document: Mapping[str, Any]) -> None:
    """Check a whole `delta_config.json` against the schema.

    Raises:
        ConfigError: the delta type or a key is unknown, or a value is invalid.
    """
    schema = load_schema(SCHEMA)
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = f"This delta has format_version {version}; this deltahub reads {FORMAT_VERSION}. Update deltahub to load it."
        raise ConfigError(msg)
    delta_type = document.get("delta_type")
    if delta_type not in known_types():
        hint = suggest(shown(delta_type).strip("'"), known_types())
        msg = f"delta_type is {shown(delta_type)}, which this version does not know: {hint}"
        raise ConfigError(msg)
    options = schema["definitions"][delta_type]["properties"]
    refuse_unknown(document, {*schema["properties"], *options}, str(delta_type))
    counts = {key for key, option in options.items() if option.get("type") == "integer"}
    if wrong := next(_odd_numbers(document, counts), None) or problem(document, SCHEMA):
        msg = f"The {delta_type} config cannot work: {wrong}."
        raise ConfigError(msg)


_FILE: Final = ("size",)  # the counts of an entry in "files"


def _odd_numbers(document: Mapping[str, Any], counts: Collection[str], place: str = "") -> Iterator[str]:
    """Yield the faults that JSON Schema accepts: 8.0 for a count, and NaN or infinity at any depth."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _odd_numbers(value, _FILE if place == "files." else (), f"{place}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{place}{key} must be of type number, got {value}"
        elif isinstance(value, float) and key in counts:
            yield f"{place}{key} must be of type integer, got {value}"
