"""Deltas on the Hugging Face Hub and on any hub that speaks its protocol."""

from deltahub.sources.huggingface.source import HF, HuggingFace

__all__ = ["HF", "HuggingFace"]
