"""Deltas on a compiled backbone."""

from __future__ import annotations

import logging

import torch
from torch import nn


def reset_compiler(backbone: nn.Module) -> None:
    """Let a compiled backbone be compiled again: its graph does not see a hook that was added after it."""
    if _is_compiled(backbone):
        torch.compiler.reset()
        logging.getLogger("deltahub").warning(
            "The backbone was compiled before the delta was added; it will be compiled again."
        )


def _is_compiled(module: nn.Module) -> bool:
    # Not `modules()`, which costs a tenth of attaching a delta.
    return module.__dict__.get("_compiled_call_impl") is not None or any(
        child is not None and _is_compiled(child) for child in module._modules.values()
    )
