"""A callback for transformers' Trainer that trains an AdaLoRA within its budget."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from deltahub.errors import ConfigError


class BudgetCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Adds the regulariser's gradient before each step of the optimizer, updates the budget after it, and prunes at the end.

    Args:
        delta: the AdaLoraModel; `total_step` should be the number of the optimizer's steps.
    """

    def __init__(self, delta: Any) -> None:
        self.delta = delta

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse settings with which gradients are scaled or are not in the parameters.

        Raises:
            ConfigError: there is one, or the schedule has another length than the training.
        """
        if args.deepspeed or getattr(args, "fsdp", None) or (args.fp16 and not args.max_grad_norm):
            msg = (
                "The callback of AdaLoRA adds a gradient to the parameters, which DeepSpeed and FSDP keep elsewhere and float16 without "
                "max_grad_norm scales. Train with bf16=True or in float32, on one device or with DDP."
            )
            raise ConfigError(msg)
        if self.delta.options.total_step != state.max_steps:
            msg = f"total_step of the AdaLoRA is {self.delta.options.total_step}, and the Trainer makes {state.max_steps} steps. Make them equal."
            raise ConfigError(msg)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the gradient of the regulariser to that of the loss."""
        self.delta.regularisation().backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Update the budget with the gradients of the step."""
        self.delta.update_budget(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the directions that are off."""
        self.delta.prune()
