import pytest

from deltahub import AdapterModel, LoraConfig, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import bert, untouched


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"interactive_modify": True, "modified_modules": ["query"]}, "and interactive_modify exclude each other"),
        ({"interactive_modify": 0}, "interactive_modify must be True or a port from 1 to 65535, got 0"),
        ({"backend": "bmt"}, "backend must be 'hf', got 'bmt'"),
        ({"modified_modules": "query"}, r'modified_modules must be a list of names, got \'query\'; .* \["query"\]'),
        ({"modified_modules": ["[r]("]}, "is not a regular expression"),
    ],
)
def test_options_that_cannot_work_are_refused(options, why):
    backbone = bert()

    with untouched(backbone), pytest.raises(ValueError, match=why):
        LoraModel(backbone, **options)


@pytest.mark.parametrize(("option", "near"), [("lora_rank", "lora_r"), ("modified_module", "modified_modules")])
def test_an_unknown_option_is_refused_and_the_nearest_named(option, near):
    backbone = bert()

    with untouched(backbone), pytest.raises(ConfigError, match=f"lora has no option '{option}': did you mean '{near}'"):
        LoraModel.from_config({"delta_type": "lora", option: 3}, backbone)


def test_a_config_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="This config is of type 'lora', not 'adapter'"):
        AdapterModel.from_config(LoraConfig(), bert())


def test_options_replace_those_of_the_config():
    delta = LoraModel.from_config(LoraConfig(lora_r=2, lora_alpha=4), bert(), lora_r=3)

    assert (delta.config.lora_r, delta.config.lora_alpha) == (3, 4)


def test_the_config_tells_how_the_delta_was_made():
    config = LoraModel(bert(), lora_r=2).config

    assert config.modified_modules == ("attn@.q@", "attn@.v@")
    assert config.exclude_modules == ("lm_head",)
    assert config.backbone_class == "BertForSequenceClassification"
