"""Deltas on a compiled backbone."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn

from deltahub.errors import ConfigError


def reset_compiler() -> None:
    """Let what is compiled be compiled again: a graph does not see a hook that was added after it.

    The backbone cannot tell whether it is in one: `torch.compile(model)`, or of a function that calls it, leaves no mark.
    """
    if _has_compiled():
        torch.compiler.reset()
        logging.getLogger("deltahub").warning(
            "Something was compiled before the delta was added; it will be compiled again, so that the delta acts."
        )


def _has_compiled() -> bool:
    if "torch._dynamo.convert_frame" not in sys.modules:
        return False
    compiled: Any = getattr(sys.modules["torch._dynamo.convert_frame"], "input_codes", None)
    return bool(getattr(compiled, "seen", True))  # another torch may keep its list elsewhere: then resetting is safe


def refuse_wrapped(backbone: nn.Module) -> None:
    """Refuse a wrapper, whose prefix would become part of every saved name.

    Raises:
        ConfigError: it is one.
    """
    wrappers = (torch._dynamo.OptimizedModule,) if "torch._dynamo" in sys.modules else ()
    if isinstance(backbone, (*wrappers, nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = "module" if "module" in backbone._modules else "_orig_mod"
        msg = (
            f"backbone_model is a {type(backbone).__name__} around the backbone: pass backbone_model=model.{inner}. "
            "The wrapper then runs the delta too; wrap with DataParallel after adding it."
        )
        raise ConfigError(msg)
