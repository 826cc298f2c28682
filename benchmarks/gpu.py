"""LoRA on one GPU: routed batches, switching and loading, a 4-bit training step, experts; beside PEFT and the bare model.

python benchmarks/gpu.py                          on one GPU, in at most 8 minutes
python benchmarks/gpu.py --device cpu --small     the same code with tiny models, to see that it runs

A part that cannot run, or for which no time is left, says why and is skipped.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from measure import OUT, interleaved, report
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from deltahub import AutoDeltaModel, LoraModel, LoraSlots, route

LIMIT: Final = 8 * 60  # seconds
TARGETS: Final = ["q_proj", "v_proj"]
RANK: Final = 16
COUNTS: Final = (1, 8, 64, 512)
MOST_PEFT: Final = 64  # PEFT runs one product for each LoRA: more would take too long
LARGE: Final = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 16}
TINY: Final = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


class Skipped(Exception):
    """A part that cannot run here, and why."""


@dataclass
class Setting:
    """The device, the sizes, and the time that is left.

    Attributes:
        device: where the models are.
        dtype: of the models.
        small: whether sizes are tiny.
        rounds: how often each variant is measured.
        end: when no further part begins, by `time.monotonic`.
    """

    device: torch.device
    dtype: torch.dtype
    small: bool
    rounds: int
    end: float

    def model(self) -> LlamaForCausalLM:
        """Make a Llama with random weights."""
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=1000, max_position_embeddings=1024, **(TINY if self.small else LARGE))
        with torch.device(self.device):
            return LlamaForCausalLM(config).to(self.dtype).eval().requires_grad_(False)

    def words(self, rows: int, length: int) -> Tensor:
        """Draw tokens, ``(rows, length)``."""
        return torch.randint(0, 1000, (rows, length), device=self.device)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, variants: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Measure the median wall time of each variant, which includes the wait for the device."""

        def prepared(call: Callable[[], object]) -> Callable[[], Callable[[], object]]:
            def run() -> None:
                call()
                self.wait()

            def prepare() -> Callable[[], object]:
                self.wait()
                return run

            return prepare

        return interleaved(
            {name: prepared(call) for name, call in variants.items()}, self.rounds, clock=time.perf_counter
        )

    @contextmanager
    def memory(self, title: str) -> Iterator[None]:
        """Print the peak of the device's memory in a block."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.device.type == "cuda":
            OUT.print(f" {title}: at most {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of GPU memory")

    def left(self) -> None:
        """Raise if no time is left."""
        if time.monotonic() > self.end:
            msg = "no time is left"
            raise Skipped(msg)


# ----- routed batches -----


def filled_slots(setting: Setting, count: int, kernel: str) -> tuple[nn.Module, LoraSlots]:
    """Make a model with slots, and `count` LoRAs in them."""
    model = setting.model()
    delta = LoraModel(model, lora_r=RANK, modified_modules=TARGETS, dtype=setting.dtype)
    slots = LoraSlots(model, count, RANK, TARGETS, dtype=setting.dtype, kernel=kernel)
    for number in range(count):
        slots.load(f"d{number}", delta)
    delta.remove()
    return model, slots


def many_deltas(setting: Setting, count: int) -> nn.Module:
    """Make a model with `count` LoRAs as deltas."""
    model = setting.model()
    for number in range(count):
        LoraModel(model, lora_r=RANK, modified_modules=TARGETS, name=f"d{number}", dtype=setting.dtype)
    return model


def many_of_peft(setting: Setting, count: int) -> nn.Module:
    """Make a model with `count` LoRAs of PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=TARGETS)
    wrapped = get_peft_model(setting.model(), config, adapter_name="d0")
    for number in range(1, count):
        wrapped.add_adapter(f"d{number}", config)
    return wrapped.to(setting.dtype).eval()


def stepping(setting: Setting, model: nn.Module, rows: int, length: int, **options: Any) -> Callable[[], object]:
    """Return one step of decoding behind `length` tokens; the cache is cut back after each call."""
    words, token = setting.words(rows, length), setting.words(rows, 1)
    cache = DynamicCache()
    model(words, past_key_values=cache, use_cache=True, **options)

    def step() -> None:
        model(token, past_key_values=cache, use_cache=True, **options)
        cache.crop(-1)

    return step


@torch.no_grad()
def routed(setting: Setting, count: int) -> None:
    """Print how long decoding and prefill take with a LoRA for each row."""
    names = [f"d{number}" for number in range(count)]
    kernels = ["torch", *(["triton"] if setting.device.type == "cuda" else [])]
    with ExitStack() as stack:
        models: dict[str, tuple[nn.Module, dict[str, Any]]] = {"bare": (setting.model(), {})}
        for kernel in kernels:
            model, slots = filled_slots(setting, count, kernel)
            stack.enter_context(slots.route(names))
            models[f"slots, {kernel}"] = model, {}
        if count <= MOST_PEFT:
            model = many_deltas(setting, count)
            stack.enter_context(route(model, names))
            models |= {"route": (model, {}), "peft": (many_of_peft(setting, count), {"adapter_names": names})}
        behind, length = (4, 8) if setting.small else (128, 256 if count <= MOST_PEFT else 32)
        with setting.memory(f"{count} LoRAs"):
            steps = {
                name: stepping(setting, model, count, behind, **options) for name, (model, options) in models.items()
            }
            report(f"Decoding, {count} rows through {count} LoRAs (r={RANK})", setting.timed(steps), "bare")
            setting.left()
            words = setting.words(count, length)
            calls = {name: lambda m=model, o=options: m(words, **o) for name, (model, options) in models.items()}
            report(f"Prefill of {length} tokens, {count} rows through {count} LoRAs", setting.timed(calls), "bare")


@torch.no_grad()
def compiled(setting: Setting) -> None:
    """Print how long a compiled step takes with slots, and how often exchanges compile again."""
    from torch._dynamo.utils import counters

    backend = "inductor" if setting.device.type == "cuda" else "eager"
    bare, (model, slots) = setting.model(), filled_slots(setting, 8, "torch")
    words = setting.words(8, 16)
    calls = {
        name: torch.compile(each, backend=backend, fullgraph=True) for name, each in (("bare", bare), ("slots", model))
    }
    slots.select("d0")
    times = setting.timed({name: lambda call=call: call(words) for name, call in calls.items()})
    report("Compiled, one slot of 8 selected, 8 rows of 16 tokens", times, "bare")
    before = counters["stats"]["unique_graphs"]
    for number in range(100):
        slots.select(f"d{number % 8}")
        slots.set_strength(f"d{number % 8}", 0.5)
        calls["slots"](words)
    OUT.print(f" graphs made by 100 exchanges: {counters['stats']['unique_graphs'] - before}\n")


# ----- switching and loading -----


@torch.no_grad()
def switching(setting: Setting) -> None:
    """Print how long loading and switching take."""
    from peft import LoraConfig, get_peft_model

    ours, (_, slots) = setting.model(), filled_slots(setting, 2, "torch")
    deltas = [LoraModel(ours, lora_r=RANK, modified_modules=TARGETS, name=name) for name in ("a", "b")]
    deltas[1].detach()
    wrapped = get_peft_model(setting.model(), LoraConfig(r=RANK, target_modules=TARGETS), adapter_name="a")
    wrapped.add_adapter("b", LoraConfig(r=RANK, target_modules=TARGETS))

    def ours_switched() -> None:
        for delta in deltas:
            (delta.detach if delta.attached else delta.attach)()

    with tempfile.TemporaryDirectory() as folder:
        deltas[0].freeze_module(exclude=["deltas"])
        deltas[0].save_finetuned(f"{folder}/ours")
        wrapped.save_pretrained(f"{folder}/peft", selected_adapters=["a"])

        def ours_loaded() -> None:
            AutoDeltaModel.from_finetuned(f"{folder}/ours", ours, name="c", check_hash=False).remove()

        def peft_loaded() -> None:
            wrapped.load_adapter(f"{folder}/peft/a", adapter_name="c")
            wrapped.delete_adapter("c")

        loads = {
            "delta": ours_loaded,
            "slot": lambda: slots.load("d0", Path(folder, "ours"), check_hash=False),
            "peft": peft_loaded,
        }
        report("Loading a LoRA from a folder, backbone not checked", setting.timed(loads), "peft")
    names = iter(("a", "b") * 10_000)
    switches = {
        "delta": ours_switched,
        "slot": lambda: slots.select("d1"),
        "peft": lambda: wrapped.set_adapter(next(names)),
    }
    report("Switching between two LoRAs", setting.timed(switches), "peft")


# ----- training -----


def quantise(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace the linear layers of a Llama's blocks with 4-bit ones of bitsandbytes."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and "layers" in name:
            parent, _, last = name.rpartition(".")
            small = Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
            small.weight = Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            setattr(model.get_submodule(parent), last, small.to(device))
    return model


def four_bits(setting: Setting) -> None:
    """Print how long a training step on a 4-bit model takes."""
    try:
        models: dict[str, Any] = {name: quantise(setting.model(), setting.device) for name in ("deltahub", "peft")}
    except ImportError as error:
        raise Skipped(f"bitsandbytes: {error}") from error
    from peft import LoraConfig, get_peft_model

    LoraModel(models["deltahub"], lora_r=RANK, modified_modules=TARGETS).freeze_module(exclude=["deltas"])
    models["peft"] = get_peft_model(models["peft"], LoraConfig(r=RANK, lora_alpha=16, target_modules=TARGETS))
    words = setting.words(*((2, 8) if setting.small else (8, 256)))

    def step(model: Any) -> None:
        model.train()(words, labels=words).loss.backward()

    with setting.memory("4-bit training"):
        times = setting.timed({name: lambda model=model: step(model) for name, model in models.items()})
    report(f"A training step, nf4, {words.shape[0]} x {words.shape[1]} tokens", times, "peft")


@torch.no_grad()
def experts(setting: Setting) -> None:
    """Print how long a mixture of experts takes with LoRA on its experts."""
    sizes = {**(TINY if setting.small else {**LARGE, "num_hidden_layers": 4}), "num_key_value_heads": 4}
    config = MixtralConfig(vocab_size=1000, num_local_experts=8, **sizes)

    def made() -> Any:
        torch.manual_seed(0)
        with torch.device(setting.device):
            return MixtralForCausalLM(config).to(setting.dtype).eval().requires_grad_(False)

    bare, ours = made(), made()
    try:
        LoraModel(ours, lora_r=RANK, modified_modules=["experts.w1", "experts.w2"], dtype=setting.dtype)
    except Exception as error:
        raise Skipped(f"LoRA on experts: {error}") from error
    words = setting.words(*((2, 8) if setting.small else (8, 256)))
    with setting.memory("experts"):
        times = setting.timed({"bare": lambda: bare(words), "deltahub": lambda: ours(words)})
    report("LoRA on the experts of a Mixtral, prefill", times, "bare")


def parts(setting: Setting) -> dict[str, Callable[[], None]]:
    """Return the parts by name, in their order."""
    counts: Sequence[int] = (1, 4) if setting.small else COUNTS
    return {
        **{f"{count} routed LoRAs": lambda count=count: routed(setting, count) for count in counts},
        "compiled": lambda: compiled(setting),
        "switching": lambda: switching(setting),
        "4-bit training": lambda: four_bits(setting),
        "experts": lambda: experts(setting),
    }


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--small", action="store_true", help="tiny models and few rounds")
    options = parser.parse_args()
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu --small")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    setting = Setting(device, dtype, options.small, 2 if options.small else 10, time.monotonic() + LIMIT - 60)
    for name, part in parts(setting).items():
        try:
            setting.left()
            part()
        except Skipped as reason:
            OUT.print(f"[bold]{name}[/bold] was skipped: {reason}\n")
        except torch.OutOfMemoryError as error:
            OUT.print(f"[bold]{name}[/bold] was skipped: {error}\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
