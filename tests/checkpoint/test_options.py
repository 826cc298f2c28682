"""A config class gives the schema of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Limits, options_of
from deltahub.errors import ConfigError

BIG = 1.7976931348623157e308


@dataclass(frozen=True, kw_only=True)
class Options(DeltaConfig):
    rank: Annotated[int, Limits(minimum=1)] = 8
    share: Annotated[float, Limits(exclusiveMinimum=0)] = 0.5
    mode: Literal["sum", "mean"] = "sum"
    other: Literal["a"] | None = None
    limit: int | None = None
    names: Sequence[str] = ()
    sizes: Mapping[str, Annotated[int, Limits(minimum=1)]] | None = None
    delta_type: ClassVar[str] = "options"


def test_the_schema_follows_the_types_and_their_limits():
    schema = options_of(Options)

    assert schema["rank"] == {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
    assert schema["share"] == {"type": "number", "exclusiveMinimum": 0, "maximum": BIG}
    assert schema["mode"] == {"enum": ["sum", "mean"]}
    assert schema["other"] == {"enum": ["a", None]}
    assert schema["limit"]["type"] == ["integer", "null"]
    assert schema["names"] == {"type": "array", "maxItems": 100_000, "items": {"type": "string", "maxLength": 1024}}
    assert schema["sizes"]["type"] == ["object", "null"]
    assert schema["sizes"]["additionalProperties"]["minimum"] == 1


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 8.0}, "rank must be of type integer, got 8.0"),
        ({"rank": True}, "rank must be of type integer, got True"),
        ({"rank": None}, "rank must be of type integer, got None"),
        ({"share": 0}, "share must be more than 0, got 0"),
        ({"share": 10**400}, "share must be at most"),
        ({"mode": "max"}, "mode must be one of ['sum', 'mean'], got 'max'"),
        ({"limit": 1.0}, "limit must be of type integer, got 1.0"),
        ({"names": "q"}, "names must be of type array, got 'q'"),
        ({"names": ["q", 3]}, "names[1] must be of type string, got 3"),
        ({"sizes": {"q": 2.0}}, "sizes.q must be of type integer, got 2.0"),
        ({"sizes": {"q": 0}}, "sizes.q must be at least 1, got 0"),
    ],
)
def test_impossible_values_are_refused(options, clause):
    with pytest.raises(ConfigError) as caught:
        Options(**options)
    assert f"The options config cannot work: {clause}" in str(caught.value)


def test_possible_values_are_kept_and_lists_copied():
    names = ["q"]
    config = Options(names=names, sizes={"q": 2}, other="a", limit=3)
    names.append("k")
    assert (config.names, config.sizes, config.other, config.limit) == (("q",), {"q": 2}, "a", 3)
    assert Options.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("annotation", "shown"), [(Any, "Any"), (set[str], "set"), (int | str, "int | str"), (list, "list")]
)
def test_a_type_without_a_schema_is_refused_with_the_field(annotation, shown):
    cls = dataclass(frozen=True, kw_only=True)(
        type("Odd", (DeltaConfig,), {"__annotations__": {"x": annotation}, "x": None, "delta_type": "odd"})
    )
    with pytest.raises(ConfigError, match=r"Odd\.x is of type .*" + shown.replace("|", r"\|")):
        cls()


def test_an_option_with_the_name_of_a_common_key_is_refused():
    cls = dataclass(frozen=True, kw_only=True)(
        type("Odd", (DeltaConfig,), {"__annotations__": {"files": int}, "files": 1, "delta_type": "odd"})
    )
    with pytest.raises(ConfigError, match="Odd has an option 'files', which in every"):
        cls()
