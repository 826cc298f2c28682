"""Methods of PEFT whose update is a matrix of high rank, or depends on the weight: they become a `weight_update` of the same method.

The tensors keep their names. Methods without one of their own become a dense update, as large as the weight:

    RandLoRA     dW = s A B             B: random bases, A: the other bases, scaled by trained values  https://arxiv.org/abs/2502.00987
    MiSS "bat"   dW = blocks W_ij B_i + B_i                                                            https://arxiv.org/abs/2409.15371
    GLoRA        dW = W * A + B,  db = b * D + E + W C                                                 https://arxiv.org/abs/2306.07967
    OSF          dW = U S V - L         L: W without its largest singular values                       https://arxiv.org/abs/2504.07097
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from deltahub.checkpoint.address import exact_addresses
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.low_rank_reading import low_rank
from deltahub.formats.peft.low_rank_reading import miss as low_rank_miss
from deltahub.formats.peft.module_matching import by_pattern
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter

Options = dict[str, Any]
Tensors = dict[str, Tensor]
Read = Callable[[SavedAdapter, str], tuple[Options, Tensors]]


def weight_update(method: str, read: Read) -> Callable[[SavedAdapter], Converted]:
    """Return a reader that makes a `weight_update` of each module's options and tensors.

    Args:
        method: the name of the method.
        read: returns the options and tensors of a module.
    """

    def convert(adapter: SavedAdapter) -> Converted:
        found = {adapter.names.real[module]: read(adapter, module) for module in adapter.modules}
        addresses = exact_addresses(found, adapter.names.real.values())
        common = dict(Counter(tuple(sorted(options.items())) for options, _ in found.values()).most_common(1)[0][0])
        patterns = {
            addresses[name]: {key: value for key, value in options.items() if value != common[key]}
            for name, (options, _) in found.items()
            if options != common
        }
        document = {
            "delta_type": "weight_update",
            "method": method,
            "options": common,
            "options_pattern": patterns,
            "modified_modules": [addresses[name] for name in sorted(found)],
        }
        tensors = {
            delta_key(name, leaf): tensor.contiguous()
            for name, (_, own) in found.items()
            for leaf, tensor in own.items()
        }
        return Converted(document, tensors)

    return convert


def _own(adapter: SavedAdapter, module: str) -> Tensors:
    """Return all the method's tensors of a module, under their own names."""
    return {leaf: tensor for (place, leaf), tensor in adapter.leaves.items() if place == module}


def _ranked(adapter: SavedAdapter, module: str, key: str = "r", default: int = 8) -> int:
    return int(
        by_pattern(adapter.config.get("rank_pattern"), adapter.spelled(module), adapter.config.get(key, default))
    )


def _scaled(adapter: SavedAdapter, module: str) -> float:
    return float(
        by_pattern(adapter.config.get("alpha_pattern"), adapter.spelled(module), adapter.config.get("alpha", 8))
    )


def loha(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of LoHa."""
    tucker = adapter.get(module, "hada_t1") is not None
    return {"r": _ranked(adapter, module), "alpha": _scaled(adapter, module), "tucker": tucker}, _own(adapter, module)


def lokr(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of LoKr."""
    options = {
        "r": _ranked(adapter, module),
        "alpha": _scaled(adapter, module),
        "decompose_both": bool(adapter.config.get("decompose_both")),
        "decompose_factor": int(adapter.config.get("decompose_factor", -1)),
        "tucker": adapter.get(module, "lokr_t2") is not None,
    }
    return options, _own(adapter, module)


def oft(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of OFT; the constraint of COFT is applied once, as it would be in every call."""
    config, values = adapter.config, adapter.leaf(module, "oft_R")
    n_in, _ = adapter.widths(module)
    size = (1 + math.isqrt(1 + 8 * values.shape[-1])) // 2
    shared = bool(config.get("block_share"))
    if values.dim() != 2 or size * (size - 1) // 2 != values.shape[1] or (not shared and len(values) * size != n_in):
        msg = f"The adapter's oft_R for {module} is {list(values.shape)}, which is not that of blocks of {n_in} inputs. Load its own backbone."
        raise CheckpointError(msg)
    if config.get("coft"):
        limit = float(config.get("eps", 6e-5)) / math.sqrt(len(values))
        norms = (2 * values.square().sum(1, keepdim=True)).sqrt()
        values = torch.where(norms <= limit, values, values * (limit / norms))
    terms = _neumann_terms(config)
    return {"block_size": size, "block_share": shared, "neumann_terms": terms}, {"oft_R": values}


def _neumann_terms(config: Mapping[str, Any]) -> int:
    """Return the number of terms of the series, 0 for the exact inverse.

    Raises:
        ConfigError: the config does not say which of them, or is of a release with another series.
    """
    neumann, terms = config.get("use_cayley_neumann"), int(config.get("num_cayley_neumann_terms") or 5)
    release = re.match(r"0\.(\d+)\.", f"{config.get('peft_version') or '0.0'}.")
    if neumann is None or (neumann and release and int(release[1]) < 18):
        msg = "The adapter is an OFT of a release of PEFT that computed its rotations otherwise. Load it with that release."
        raise ConfigError(msg)
    if not neumann:
        return 0
    return 4 if terms == 3 else terms  # PEFT's series has four terms then


def boft(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of BOFT with one factor."""
    values = adapter.leaf(module, "boft_R")
    if values.dim() != 4 or len(values) != 1:
        msg = (
            f"The adapter is a BOFT with {len(values)} butterfly factors, which PEFT computes with a CUDA kernel of its own; DeltaHub knows one "
            "factor. Load it with PEFT."
        )
        raise ConfigError(msg)
    return {"block_size": values.shape[-1]}, {"boft_R": values, "boft_s": adapter.leaf(module, "boft_s").reshape(-1, 1)}


def hra(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of HRA."""
    return {"r": int(adapter.config.get("r", 8)), "orthogonal": bool(adapter.config.get("apply_GS"))}, _own(
        adapter, module
    )


def hira(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of HiRA, whose rank does not scale it."""
    return {"r": len(adapter.leaf(module, "hira_A"))}, _own(adapter, module)


def road(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of RoAd."""
    variant = str(adapter.config.get("variant", "road_1")).removeprefix("road_")
    if variant not in ("1", "2", "4"):
        msg = f"The adapter is a ROAD of variant {variant!r}; expected road_1, road_2 or road_4. Load it with PEFT."
        raise ConfigError(msg)
    return {"variant": int(variant), "group_size": int(adapter.config.get("group_size", 64))}, _own(adapter, module)


def c3a(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of C3A."""
    return {"block_size": adapter.leaf(module, "c3a_kernel").shape[-1]}, _own(adapter, module)


def fourierft(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of FourierFT, whose places PEFT draws from a seed."""
    return _spectrum(adapter, module, "fourierft_spectrum", 150.0)


def waveft(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of WaveFT with the wavelets of Haar."""
    if (family := adapter.config.get("wavelet_family", "db1")) not in ("db1", "haar") or not adapter.config.get(
        "use_idwt", True
    ):
        msg = f"The adapter is a WAVEFT with the wavelets {family!r}; DeltaHub knows db1, those of Haar, with use_idwt. Load it with PEFT."
        raise ConfigError(msg)
    return _spectrum(adapter, module, "waveft_spectrum", 25.0)


def _spectrum(adapter: SavedAdapter, module: str, leaf: str, scale: float) -> tuple[Options, Tensors]:
    values, (n_in, n_out) = adapter.leaf(module, leaf), adapter.widths(module)
    draw = torch.Generator().manual_seed(int(adapter.config.get("random_loc_seed", 777)))
    places = torch.randperm(n_in * n_out, generator=draw)[: len(values)]
    if len(places) < len(values):
        msg = f"The adapter has {len(values)} values for {module}, whose weight has {n_in * n_out}. Load its own backbone."
        raise CheckpointError(msg)
    return {"places": len(values), "scale": float(adapter.config.get("scaling", scale))}, {
        "places": places,
        "values": values,
    }


def shira(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of SHiRA."""
    n_in, _ = adapter.widths(module)
    rows, columns = adapter.leaf(module, "shira_indices").long()
    return _sparse(adapter, module, rows * n_in + columns, adapter.leaf(module, "shira_weight"))


def _sparse(adapter: SavedAdapter, module: str, places: Tensor, values: Tensor) -> tuple[Options, Tensors]:
    n_in, n_out = adapter.widths(module)
    if (
        places.shape != values.shape
        or int(places.min()) < 0
        or int(places.max()) >= n_in * n_out
        or len(set(places.tolist())) < len(places)
    ):
        msg = f"The adapter's places for {module} are not {len(values)} different ones in its weight {[n_out, n_in]}. Load its own backbone."
        raise CheckpointError(msg)
    return {"places": len(values), "scale": 1.0}, {"places": places, "values": values}


def supertuning(adapter: SavedAdapter) -> Converted:
    """Convert Super-tuning: single entries, and with a rank a LoRA beside them, together a dense update."""
    if adapter.config.get("r") is None:
        return weight_update("sparse", _super_entries)(adapter)
    return weight_update("dense", dense(_super_dense))(adapter)


def _super_entries(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    values = adapter.leaf(module, "supertuning_values").flatten()
    places = adapter.get(module, "supertuning_indices")
    if places is None:
        scores = adapter.weight(module).abs().flatten()
        places = scores.topk(len(values), largest=bool(adapter.config.get("select_top", True))).indices
    return _sparse(adapter, module, places.long().flatten(), values)


def _super_dense(adapter: SavedAdapter, module: str) -> Tensor:
    _, tensors = _super_entries(adapter, module)
    down, up = adapter.leaf(module, "supertuning_lora_A"), adapter.leaf(module, "supertuning_lora_B")
    change = float(adapter.config.get("lora_alpha") or 0) / len(down) * (up @ down)
    return change.flatten().scatter_add(0, tensors["places"], tensors["values"]).view(change.shape)


def dense(change: Callable[[SavedAdapter, str], Tensor]) -> Read:
    """Return a reader of a module whose whole update is computed at once."""

    def read(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
        return {"bias": False}, {"change": change(adapter, module)}

    return read


def miss(adapter: SavedAdapter) -> Converted:
    """Convert MiSS: a LoRA, or the variant "bat", which depends on the weight."""
    if adapter.config.get("init_weights") == "bat":
        return weight_update("dense", dense(_bat))(adapter)
    return low_rank(low_rank_miss, dropout="miss_dropout")(adapter)


def _bat(adapter: SavedAdapter, module: str) -> Tensor:
    blocks, weight = adapter.leaf(module, "miss_block"), adapter.weight(module)
    size = blocks.shape[-1]
    tiles = weight.view(len(blocks), size, -1, size).permute(2, 0, 1, 3)
    return (tiles @ blocks + blocks).permute(1, 2, 0, 3).reshape(weight.shape)


def randlora(adapter: SavedAdapter, module: str) -> Tensor:
    """Compute the update of RandLoRA."""
    first, bases = _random_bases(adapter, module)
    n_in, n_out = adapter.widths(module)
    small, large = min(n_in, n_out), max(n_in, n_out)
    factors, gains = adapter.leaf(module, "randlora_lambda"), adapter.leaf(module, "randlora_gamma")
    wide = bases[:large, : factors.shape[1]].flatten(1)  # (large, bases r)
    narrow = (factors[:, :, None] * first[:, :1, :small] * gains[None]).flatten(0, 1)  # (r bases, small)
    change = float(adapter.config.get("randlora_alpha", 640)) / int(adapter.config.get("r", 32)) * (wide @ narrow)
    return change if small == n_in else change.T


def _random_bases(adapter: SavedAdapter, module: str) -> tuple[Tensor, Tensor]:
    """Return the shared bases, ``(r, 1, small)`` and ``(large, bases, r)``, from the file.

    Raises:
        ConfigError: the file does not hold them.
    """
    own = adapter.get(module, "randlora_A") is not None  # PEFT saves the same ones for each layer
    if own or adapter.config.get("save_projection", True):
        return adapter.leaf(module if own else "", "randlora_A"), adapter.leaf(module if own else "", "randlora_B")
    msg = (
        "The adapter is a RANDLORA without its random bases (save_projection), which PEFT draws in a precision that depends on the machine. "
        "Save it with save_projection=True in PEFT, where it was trained."
    )
    raise ConfigError(msg)


def osf(adapter: SavedAdapter, module: str) -> Tensor:
    """Compute the update of OSF: new small singular parts for those of the weight."""
    left, sizes, right = (adapter.leaf(module, f"osf_svd_params.{leaf}") for leaf in ("U_low", "S_low", "V_low"))
    u, s, v = torch.linalg.svd(adapter.weight(module), full_matrices=False)
    high = len(s) - len(sizes)
    if high > 0 and len(sizes) and not s[high - 1] - s[high] > 1e-6 * s[0]:
        msg = f"The adapter is an OSF, and the weight of {module} does not determine the directions that it replaces. Load it with PEFT."
        raise ConfigError(msg)
    update: Tensor = (left * sizes) @ right - (u[:, high:] * s[high:]) @ v[high:]
    return update


def glora(adapter: SavedAdapter, module: str) -> tuple[Options, Tensors]:
    """Read an update of GLoRA, which changes the bias as well."""
    weight, bias = adapter.weight(module), adapter.bias(module)
    change = weight * _path(adapter, module, "A") + _path(adapter, module, "B")
    if bias is None:
        return {"bias": False}, {"change": change}
    inner = _path(adapter, module, "C").expand(weight.shape[1], 1) if _has_path(adapter, module, "C") else None
    shift = bias * _path(adapter, module, "D") + _path(adapter, module, "E")
    shift = shift if inner is None else shift + (weight @ inner)[:, 0]
    return {"bias": True}, {"change": change, "bias_change": shift}


def _has_path(adapter: SavedAdapter, module: str, part: str) -> bool:
    return any(adapter.get(module, f"glora_{part}.{leaf}") is not None for leaf in ("X", "Xd"))


def _path(adapter: SavedAdapter, module: str, part: str) -> Tensor:
    """Return a part of GLoRA: a product, a vector, a number, or 0."""
    if (up := adapter.get(module, f"glora_{part}.Xd")) is not None:
        return up @ adapter.leaf(module, f"glora_{part}.Xu")
    value = adapter.get(module, f"glora_{part}.X")
    return torch.zeros(1) if value is None else value
