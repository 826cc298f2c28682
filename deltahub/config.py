"""Delta configs: frozen, strict, and described by `schemas/delta_config.v1.json`.

A config class has one field for each option of its method. Every value is held against the schema when the config is
made, so that a config that exists is a config that can work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Self

from deltahub.address import check_patterns
from deltahub.errors import ConfigError
from deltahub.nearest import suggest
from deltahub.schema import load_schema, problem, shown

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

Names = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """What all deltas have in common: where they sit, and which backbone they belong to.

    Args:
        modified_modules: addresses of the modules that hold the delta (`deltahub.address`); None for the method's own.
        exclude_modules: addresses of modules that, with all inside them, are left out; None for the method's own.
        unfrozen_modules: what `freeze_module` leaves trainable; ``"deltas"`` stands for the delta's own parameters.
        common_structure: True to read addresses as common names, False as real names, None as whichever matches.
        backbone_class: class name of the backbone, e.g. ``"BertModel"``.
        backbone_checkpoint_name: name of the backbone's checkpoint, e.g. ``"bert-base-uncased"``.
        backbone_hash: fingerprint of the backbone's tensors that the delta leaves alone (32 hex digits).

    Raises:
        ConfigError: an option has a value that can never work.
        AddressError: a regular expression among the addresses cannot be matched (`deltahub.patterns`).
    """

    modified_modules: Names | None = None
    exclude_modules: Names | None = None
    unfrozen_modules: Names | None = ("deltas",)
    common_structure: bool | None = None
    backbone_class: str = ""
    backbone_checkpoint_name: str = ""
    backbone_hash: str | None = None

    delta_type: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for key in ("modified_modules", "exclude_modules", "unfrozen_modules"):
            object.__setattr__(self, key, _as_names(key, getattr(self, key)))
        if self.delta_type in known_types():
            check_document({"format_version": FORMAT_VERSION, **self.to_dict()})
        for value in vars(self).values():
            if isinstance(value, (tuple, Mapping)):
                check_patterns(value)

    def to_dict(self) -> dict[str, Any]:
        """The delta type and every option, as JSON types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"delta_type": self.delta_type, **lists}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **overrides: Any) -> Self:
        """Read a config from JSON types; keys that describe the checkpoint as a whole are skipped.

        Args:
            overrides: options that replace those of `document`.

        Raises:
            ConfigError: a key is unknown, or a value can never work.
        """
        if (given := document.get("delta_type", cls.delta_type)) != cls.delta_type:
            msg = (
                f"This config is of type {given!r}, not {cls.delta_type!r}. AutoDeltaConfig.from_dict finds its class."
            )
            raise ConfigError(msg)
        options = {key: value for key, value in {**document, **overrides}.items() if key not in CHECKPOINT_KEYS}
        refuse_unknown(options, {field.name for field in fields(cls)}, cls.delta_type)
        return cls(**options)


BaseDeltaConfig = DeltaConfig  # its name in OpenDelta


def _as_names(key: str, value: Any) -> Names | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        msg = (
            f"{key} must be a list of names, got {shown(value)}; for one name write [{json.dumps(shown(value)[1:-1])}]."
        )
        raise ConfigError(msg)
    return tuple(value)


def known_types() -> tuple[str, ...]:
    """The delta types that a checkpoint can hold."""
    return tuple(load_schema(SCHEMA)["properties"]["delta_type"]["enum"])


def refuse_unknown(options: Mapping[str, Any], known: set[str], what: str) -> None:
    """Raise `ConfigError` for the first option that is not known, naming the nearest one that is."""
    for key in options:
        if key not in known:
            msg = f"{what} has no option {shown(key)}: {suggest(key, known)}"
            raise ConfigError(msg)


def check_document(document: Mapping[str, Any]) -> None:
    """Hold a whole `delta_config.json` against the schema.

    Raises:
        ConfigError: the delta type or a key is unknown, or a value can never work.
    """
    schema = load_schema(SCHEMA)
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        msg = f"This delta has format_version {version}; this deltahub reads {FORMAT_VERSION}. Update deltahub to load it."
        raise ConfigError(msg)
    delta_type = document.get("delta_type")
    if delta_type not in known_types():
        known = suggest(shown(delta_type).strip("'"), known_types())
        msg = f"delta_type is {shown(delta_type)}, which this version does not know: {known}"
        raise ConfigError(msg)
    options = schema["definitions"][delta_type]["properties"]
    refuse_unknown(document, {*schema["properties"], *options}, str(delta_type))
    counts = {key for key, option in options.items() if option.get("type") == "integer"}
    if wrong := next(_odd_numbers(document, counts), None) or problem(document, SCHEMA):
        msg = f"The {delta_type} config cannot work: {wrong}."
        raise ConfigError(msg)


_FILE: Final = ("size",)  # the counts of an entry in "files"


def _odd_numbers(document: Mapping[str, Any], counts: Collection[str], place: str = "") -> Iterator[str]:
    """What JSON Schema lets pass: 8.0 for a count, and at any depth what JSON has no word for."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _odd_numbers(value, _FILE if place == "files." else (), f"{place}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{place}{key} must be of type number, got {value}"
        elif isinstance(value, float) and key in counts:
            yield f"{place}{key} must be of type integer, got {value}"
