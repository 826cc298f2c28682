"""The arguments of OpenDelta's example scripts that describe a delta."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass
class DeltaArguments:
    """A delta for `AutoDeltaConfig.from_dict(asdict(arguments))`, and facts about its backbone and its folder.

    Args:
        delta_type: the type of the delta, or ``"none"``.
        backbone_model, model_path_public: the backbone's name and address, for the model card.
        modified_modules: addresses of the modules to put the delta on; None for the method's default.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        finetuned_delta_path: the folder to save the delta to.
        force_download, local_files_only, delta_cache_dir: arguments of `from_finetuned`.
        delay_push: whether to print the command that pushes the delta instead of pushing it.
    """

    delta_type: str = ""
    backbone_model: str | None = ""
    model_path_public: str | None = ""
    modified_modules: list[str] | None = None
    unfrozen_modules: list[str] | None = field(default_factory=lambda: ["deltas"])
    finetuned_delta_path: str | None = None
    force_download: bool | None = False
    local_files_only: bool | None = False
    delta_cache_dir: str | None = None
    delay_push: bool | None = True

    def merge_arguments(self, other: Any) -> None:
        """Add the fields of another dataclass, such as the options of one delta type, with their values."""
        added = [(f.name, f.type, field(default=getattr(other, f.name))) for f in dataclasses.fields(other)]
        self.__class__ = dataclasses.make_dataclass("DeltaArguments", added, bases=(DeltaArguments,))
