"""Deltas on the Hugging Face Hub, and on every hub that speaks its protocol."""

from deltahub.sources.huggingface.source import HF, HuggingFace

__all__ = ["HF", "HuggingFace"]
