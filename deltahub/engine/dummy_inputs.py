"""Dummy inputs for one forward pass of any transformers model, as tensors without values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn


def pseudo_inputs(backbone: nn.Module, batch: int = 1, length: int = 2) -> dict[str, Tensor]:
    """Return inputs for one forward pass, on the meta device.

    Args:
        batch: number of rows.
        length: number of tokens of a text.

    Returns:
        Argument name to a meta tensor: the model's main input, and everything that its forward requires.
    """
    return next(possible_inputs(backbone, batch, length))


def possible_inputs(backbone: nn.Module, batch: int = 1, length: int = 2) -> Iterator[dict[str, Tensor]]:
    """Yield several sets of inputs, the likeliest first: with few of the model's arguments, with others, with all."""
    maker = _Maker(backbone, batch, length)
    main = maker.main
    few = [main, *(name for name in maker.required if name != main)]
    decoder = [name for name in ("decoder_input_ids",) if maker.is_encoder_decoder and maker.takes(name)]
    sets = [
        [*few, *decoder],
        few,
        [*few, *decoder, *(name for name in ("input_ids", "pixel_values", "input_features") if maker.takes(name))],
        [*few, *(name for name in _MAKERS if maker.takes(name))],
        ["input_ids"],
    ]
    yielded_shapes = []
    for names in sets:
        for turned in (False, True):
            inputs = maker.make(dict.fromkeys(names), turned=turned)
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            if inputs and shapes not in yielded_shapes:
                yielded_shapes.append(shapes)
                yield inputs


class _Maker:
    def __init__(self, backbone: nn.Module, batch: int, length: int) -> None:
        self.batch, self.length = batch, length
        self.config = getattr(backbone, "config", None)
        main = getattr(backbone, "main_input_name", "input_ids")
        self.main = main if isinstance(main, str) else main[0]
        parameters = inspect.signature(backbone.forward).parameters.values()
        fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self.names = [p.name for p in parameters if p.kind not in fixed]
        self.open = any(p.kind in fixed for p in parameters)
        self.required = [p.name for p in parameters if p.kind not in fixed and p.default is p.empty]
        if self.main not in self.names and self.names and not self.open:
            self.main = self.names[0]
        self.is_encoder_decoder = bool(getattr(self.config, "is_encoder_decoder", False))

    def takes(self, name: str) -> bool:
        return name in self.names

    def make(self, names: dict[str, None], *, turned: bool) -> dict[str, Tensor]:
        inputs = {name: _MAKERS[name](self, turned) for name in names if name in _MAKERS}
        return inputs | {"input_ids": ids(self, False)} if not inputs and self.open else inputs

    def option(self, *names: str, default: int) -> int:
        """Return the first number found under one of these names in the config or a config inside it."""
        for name in names:
            for config in self.configs():
                value = getattr(config, name, None)
                if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                    value = value[0]
                if isinstance(value, dict):
                    value = value.get("height", value.get("shortest_edge"))
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    def configs(self) -> list[Any]:
        """Return the config and the configs inside it."""
        inner = [value for value in vars(self.config or object).values() if hasattr(value, "model_type")]
        return [self.config, *inner]

    def image(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        sides = next((s for c in self.configs() if (s := getattr(c, "image_size", None)) is not None), None)
        side = self.option("image_size", "input_size", "img_size", default=224)
        height, width = sides if isinstance(sides, (list, tuple)) and len(sides) == 2 else (side, side)
        return self.option("num_channels", "in_channels", "in_chans", "num_input_channels", default=3), height, width


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def ids(maker: _Maker, turned: bool) -> Tensor:
    """Return token ids, ``(batch, length)``."""
    return torch.zeros(maker.batch, maker.length, dtype=torch.long, device="meta")


def _pixels(maker: _Maker, turned: bool) -> Tensor:
    """Return images, ``(batch, channels, height, width)``; if turned, with frames, as a video model expects."""
    frames = maker.option("num_frames", "frames_per_clip", "video_size", default=2)
    return _empty(maker.batch, *((frames,) if turned else ()), *maker.image())


def _videos(maker: _Maker, turned: bool) -> Tensor:
    frames = maker.option("num_frames", "frames_per_clip", default=4)
    channels, height, width = maker.image()
    if (crop := getattr(maker.config, "crop_size", None)) is not None:
        height = width = crop
    return _empty(maker.batch, frames, channels, height, width)


def _wave(maker: _Maker, turned: bool) -> Tensor:
    """Return samples ``(batch, time)``, or a spectrogram ``(batch, time, bins)``; if turned, with a channel: ``(batch, 1, time)``."""
    bins = maker.option("num_mel_bins", default=0)
    if bins and (frames := maker.option("max_length", default=0)):
        return _empty(maker.batch, frames, bins)
    return _empty(maker.batch, 1, 4000) if turned else _empty(maker.batch, 4000)


def _features(maker: _Maker, turned: bool) -> Tensor:
    """Return a spectrogram ``(batch, bins, frames)``; if turned, ``(batch, frames, bins)``."""
    bins = maker.option("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "n_mels", default=80)
    bins = maker.option("feature_projection_input_dim", default=bins)
    frames = 2 * maker.option("max_source_positions", default=100)
    return _empty(maker.batch, frames, bins) if turned else _empty(maker.batch, bins, frames)


def _boxes(maker: _Maker, turned: bool) -> Tensor:
    return torch.zeros(maker.batch, maker.length, 4, dtype=torch.long, device="meta")


def _past(maker: _Maker, turned: bool) -> Tensor:
    length = maker.option("context_length", "prediction_length", default=32)
    lags = getattr(maker.config, "lags_sequence", None)
    length += max(lags) if lags else 0
    channels = maker.option("num_input_channels", "input_size", default=1)
    return _empty(maker.batch, length) if turned or channels == 1 else _empty(maker.batch, length, channels)


_MAKERS: Final[dict[str, Callable[[_Maker, bool], Tensor]]] = {
    "input_ids": ids,
    "decoder_input_ids": ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _videos,
    "input_values": _wave,
    "input_features": _features,
    "bbox": _boxes,
    "past_values": _past,
    "qformer_input_ids": ids,
}
