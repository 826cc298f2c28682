"""Records of backbones for deltas of other libraries, whose files do not identify the backbone they were trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.engine.fingerprint import fingerprint
from deltahub.engine.guards import refuse_closed
from deltahub.engine.modules import modules_by_name
from deltahub.engine.quantised.record import with_samples
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import move_all, staging, storage_errors, write_synced
from deltahub.handle.loading import brought_names, read_any


def record_backbone(
    folder: str | os.PathLike[str], backbone_model: nn.Module, *, allow_pickle: bool = False
) -> Fingerprint:
    """Write `backbone.json`, the record of a backbone, beside a delta of another library; its own files stay as they are.

    A record that is there already is kept, and must be of the same backbone. With the record, `from_finetuned` refuses the delta on any other backbone, as it does for a delta saved by DeltaHub,
    and a push publishes it, so that `list --fits` finds the delta.

    Args:
        folder: the delta's folder.
        backbone_model: the backbone that it was trained on, in the precision that it will be used in.
        allow_pickle: whether its weights may be a pickle, which is then opened with `weights_only=True`.

    Returns:
        The fingerprint of the tensors that the delta does not replace.

    Raises:
        CheckpointError: the folder holds no delta, or it does not fit the backbone.
        ConfigError: DeltaHub saved the delta, with a record of its own, or its kind is not supported.
        FingerprintMismatch: another backbone is recorded there; remove `backbone.json` first if that is wrong.
        PickleRefusedError: the weights are a pickle, and `allow_pickle` is false.
        StorageError: the record cannot be written.
    """
    place = Path(folder).expanduser()
    if checkpoint.is_checkpoint(place):
        msg = f"{place} was saved by DeltaHub, with the record of its backbone. Save the delta again to change that."
        raise ConfigError(msg)
    refuse_closed(modules_by_name(backbone_model))
    saved = read_any(place, backbone_model, allow_pickle=allow_pickle)
    names, record = brought_names(saved), saved.fingerprint
    identity = fingerprint(backbone_model, names, record.version if record else None)
    if record:
        record.require(identity)
        return identity
    identity = with_samples(identity, backbone_model)
    with storage_errors("Recording the backbone", place), staging(place) as stage:
        write_synced(stage / checkpoint.BACKBONE, identity.to_bytes())
        move_all(stage, place, [checkpoint.BACKBONE])
    return identity


def load_backbone(name: str) -> nn.Module:
    """Load a backbone with its weights in the precision of its files, as the class that its config names.

    Args:
        name: its folder, or a model id in huggingface_hub's cache; nothing is downloaded.

    Raises:
        CheckpointError: there is no such backbone, transformers cannot load it, or its files lack weights.
    """
    import transformers

    folder = backbone_folder(name)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        classes = (getattr(transformers, str(architecture), None) for architecture in config.architectures or ())
        model_class: Any = next((cls for cls in classes if _is_model(cls)), transformers.AutoModel)
        loaded = model_class.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # a malformed config or file raises errors of many libraries
        msg = f"{folder} holds no backbone that transformers can load: {error}"
        raise CheckpointError(msg) from error
    model: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # transformers filled them with random values
        msg = (
            f"{folder} has no values for {missing[0]} ({len(missing)} tensors in all) of its {type(model).__name__}, so it cannot be compared. "
            "Save the model again with all of its weights, or name the class that it has weights for in architectures of its config.json."
        )
        raise CheckpointError(msg)
    return model.eval()


def _is_model(cls: object) -> bool:
    """Return whether an attribute of transformers, which a config names, is the class of a model."""
    import transformers

    return isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
