"""The check that a backbone is the one that a delta's record describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from deltahub.checkpoint.backbone_record import EXACT, OTHER_PRECISION, OTHER_QUANTISATION, VERSION, Fingerprint
from deltahub.engine.fingerprint import fingerprint, missing_from_version_1, own_state
from deltahub.engine.quantised.comparison import Agreement, compare_dequantised
from deltahub.engine.source_files import source_of
from deltahub.errors import ConfigError, FingerprintMismatch
from deltahub.log import LOGGER

STRUCTURE: Final = "structure"
DEQUANTISED: Final = "dequantised"


def check_mode(check_hash: Any) -> None:
    """Raise ConfigError unless a value is one that `check_hash` may have."""
    if not isinstance(check_hash, bool) and check_hash not in (STRUCTURE, DEQUANTISED):  # 1 is not True
        msg = f'check_hash must be True, False, "structure" or "dequantised", got {check_hash!r}.'
        raise ConfigError(msg)


def require_recorded_backbone(
    record: Fingerprint, backbone: nn.Module, without: tuple[str, ...], check_hash: bool | str
) -> Agreement | None:
    """Raise unless a backbone is the recorded one.

    Args:
        without: names of tensors that the delta replaces.
        check_hash: True, ``"structure"`` or ``"dequantised"``; see `from_finetuned`.

    Returns:
        What was compared, if the backbone is the recorded one in another quantisation.

    Raises:
        FingerprintMismatch: it is another backbone.
    """
    actual = fingerprint(backbone, without, record.version)
    if check_hash == DEQUANTISED and record.hash != actual.hash:
        actual = fingerprint(backbone, without)
        if record.version == 1:
            parts = {part for weight in actual.quantised for part in weight.part_names}
            uncovered = {*missing_from_version_1(backbone)} - parts
            actual = replace(actual, leaves=tuple(leaf for leaf in actual.leaves if leaf.name not in uncovered))
        return require_dequantised(record, actual, own_state(backbone, without), backbone)
    record.require(actual, same_weights=check_hash != STRUCTURE)
    if record.version == VERSION and actual.quantised:
        LOGGER.warning(
            "The record of the backbone is of an earlier release and does not cover the settings of its quantised layers, such as %s. Save "
            "the delta again to cover them.",
            ", ".join(actual.quantised[0].quantisation.options),
        )
    return None


def require_dequantised(
    record: Fingerprint, actual: Fingerprint, tensors: Iterable[tuple[str, Tensor]], backbone: nn.Module
) -> Agreement | None:
    """Raise unless a backbone is the recorded one, in another quantisation perhaps, and warn about what was not proven.

    Args:
        actual: its fingerprint.
        tensors: its own tensors by name.

    Raises:
        FingerprintMismatch: it is another backbone.
    """
    difference = record.compare(actual)
    if difference.level == EXACT:
        return None
    if difference.level not in (OTHER_QUANTISATION, OTHER_PRECISION):
        raise FingerprintMismatch(difference.level, difference.detail, record.hash, actual.hash)
    agreement = compare_dequantised(record, actual, tensors, backbone, source_of(backbone))
    if (found := agreement.difference) is not None:
        raise FingerprintMismatch(found.level, found.detail, record.hash, actual.hash)
    LOGGER.warning(
        "The backbone is the recorded one after dequantisation (%s). Compared: %s.", difference.detail, agreement.detail
    )
    return agreement
