"""PEFT's task type for a model.

PEFT's model class for a task passes on certain inputs, which the backbone's forward must accept.
"""

from __future__ import annotations

import inspect
from typing import Final

from torch import nn

from deltahub.errors import ConfigError

# Endings of transformers' class names, and PEFT's task types.
_TASKS: Final = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
_INPUTS: Final = {"input_ids", "attention_mask", "inputs_embeds"}
_DECODER: Final = {"decoder_input_ids", "decoder_inputs_embeds"}


def task_of(class_name: str, model_class: type[nn.Module] | None) -> str | None:
    """Return PEFT's task type for a class, if PEFT's model for that task can call the class.

    Args:
        model_class: the class; None if it is not known.
    """
    task = next((task for ending, task in _TASKS.items() if class_name.endswith(ending)), None)
    if task is None or model_class is None:
        return None
    taken = set(inspect.signature(model_class.forward).parameters)
    decoding = bool(_DECODER & taken)
    fits = taken >= _INPUTS and (taken >= _DECODER if task == "SEQ_2_SEQ_LM" else not decoding)
    return task if fits else None


def prompt_task(class_name: str, model_class: type[nn.Module] | None) -> str:
    """Return PEFT's task type for a class with a prompt.

    Raises:
        ConfigError: PEFT has no prompts for the class.
    """
    task = task_of(class_name, model_class)
    if task is None:
        msg = (
            f"PEFT knows no prompts for a {class_name or 'backbone of unknown class'}: expected a class of transformers that ends in "
            f"one of {', '.join(_TASKS)}, and whose forward takes {', '.join(sorted(_INPUTS))}; with ForConditionalGeneration also "
            f"{' and '.join(sorted(_DECODER))}, and without it neither."
        )
        raise ConfigError(msg)
    return task
