"""The comparison of a given backbone with a delta's record of its backbone, before the delta is written in another format."""

from __future__ import annotations

import torch
from torch import Tensor

from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.checkpoint.quantised_weight import split
from deltahub.engine.filling import replaced_names
from deltahub.engine.fingerprint import leaf_of
from deltahub.engine.recorded import DEQUANTISED, check_mode, require_dequantised, require_recorded_backbone
from deltahub.formats.backbone import Backbone


def require_recorded(saved: Checkpoint, backbone: Backbone, check_hash: bool | str) -> None:
    """Refuse a backbone that is not the recorded one; without a backbone or a record nothing is compared.

    A model is compared as on loading. Of a folder, each recorded tensor is read in the precision of its record; others are left out,
    such as a head of which the delta knows nothing.

    Args:
        check_hash: as in `from_finetuned`.

    Raises:
        ConfigError: `check_hash` has no meaning.
        CheckpointError: the values of the backbone cannot be read.
        FingerprintMismatch: it is another backbone.
    """
    check_mode(check_hash)
    record = saved.fingerprint
    if backbone.model is None or record is None or check_hash is False:
        return
    if backbone.values.folder is None:
        brought = (*replaced_names(saved.tensors), *saved.unchanged)
        require_recorded_backbone(record, backbone.model, brought, check_hash)
        return
    weights, names = split(record.quantised, (leaf.name for leaf in record.leaves))
    tensors = {
        name: t for name in (*weights, *names) if (t := backbone.values.find(backbone.names_of(name))) is not None
    }
    dtypes = {leaf.name: leaf.dtype for leaf in record.leaves if leaf.name in names}
    leaves = (leaf_of(name, _cast(tensor, dtypes.get(name, ""))) for name, tensor in tensors.items())
    actual = Fingerprint(tuple(leaves), record.version)
    if check_hash == DEQUANTISED:
        require_dequantised(record, actual, tensors.items(), backbone.model)
    else:
        record.require(actual, same_weights=check_hash is True)


def _cast(tensor: Tensor, recorded: str) -> Tensor:
    """Return a tensor in the precision of its record."""
    dtype = getattr(torch, recorded, None)
    is_float = isinstance(dtype, torch.dtype) and dtype.is_floating_point and tensor.is_floating_point()
    return tensor.to(dtype) if is_float else tensor
