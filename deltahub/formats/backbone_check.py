"""The comparison of a given backbone with a delta's record of its backbone, before the delta is written in another format."""

from __future__ import annotations

import torch

from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.engine.filling import replaced_names
from deltahub.engine.fingerprint import fingerprint, leaf_of
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone


def require_recorded(saved: Checkpoint, backbone: Backbone, check_hash: bool | str) -> None:
    """Refuse a backbone that is not the recorded one; without a backbone or a record nothing is compared.

    A model is compared as on loading. Of a folder, each recorded tensor is read in the precision of its record; others are left out,
    such as a head of which the delta knows nothing.

    Args:
        check_hash: as in `from_finetuned`.

    Raises:
        ConfigError: `check_hash` is none of True, False and ``"structure"``.
        CheckpointError: the values of the backbone cannot be read.
        FingerprintMismatch: it is another backbone.
    """
    if not isinstance(check_hash, bool) and check_hash != "structure":
        msg = f'check_hash must be True, False or "structure", got {check_hash!r}.'
        raise ConfigError(msg)
    record = saved.fingerprint
    if backbone.model is None or record is None or check_hash is False:
        return
    if backbone.values.folder is None:
        brought = (*replaced_names(saved.tensors), *saved.unchanged)
        actual = fingerprint(backbone.model, brought, record.version)
    else:
        found = (_found(backbone, leaf) for leaf in record.leaves)
        actual = Fingerprint(tuple(leaf for leaf in found if leaf), record.version)
    record.require(actual, same_weights=check_hash is True)


def _found(backbone: Backbone, expected: Leaf) -> Leaf | None:
    """Return the tensor that a backbone's folder has in the place of a recorded one; None if it has none."""
    tensor = backbone.values.find(backbone.names_of(expected.name))
    if tensor is None:
        return None
    dtype = getattr(torch, expected.dtype, None)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return leaf_of(expected.name, tensor)
