import socket
import urllib.request

import pytest
import torch

from deltahub import AdapterModel, LoraModel
from deltahub.errors import ConfigError, NothingChosenError
from deltahub.picker import choosing
from deltahub.picker.session import Session
from tests.backbones import bert, inputs_for, logits_of, untouched

QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]


def post(url, what, names=(), delta_type="lora"):
    """What the page would send."""
    import json

    body = json.dumps({"names": list(names), "type": delta_type}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url + what, body), timeout=60) as answer:
        return json.load(answer)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_constructor_goes_on_with_what_was_chosen(ask, capsys):
    backbone = bert()
    port = free_port()
    waiting = ask(lambda: LoraModel(backbone, lora_r=4, interactive_modify=port))
    assert waiting.url.startswith(f"http://127.0.0.1:{port}/")
    assert post(waiting.url, "preview", QUERIES)["parameters"] == 2 * 4 * (16 + 16)
    post(waiting.url, "submit", QUERIES)
    delta = waiting.result()

    assert list(delta.insertions) == QUERIES
    assert delta.config.modified_modules == tuple(QUERIES)
    assert delta.config.common_structure is False
    assert capsys.readouterr().out == 'modified_modules=["query"]\n'


def test_the_line_that_is_printed_gives_the_same_delta_again(ask, capsys):
    waiting = ask(lambda: AdapterModel(bert(), bottleneck_dim=2, interactive_modify=True))
    post(waiting.url, "submit", ["bert.encoder.layer.1.output"], "adapter")
    first = waiting.result()
    arguments = eval(f"dict({capsys.readouterr().out})")

    again = AdapterModel(bert(), bottleneck_dim=2, **arguments)
    assert list(first.insertions) == list(again.insertions) == ["bert.encoder.layer.1.output"]


@pytest.mark.parametrize("name", ["classifier", "bert.encoder.layer.0.output.dense"])
def test_a_saved_choice_loads_on_another_copy(ask, tmp_path, name):
    backbone = bert()
    waiting = ask(lambda: LoraModel(backbone, interactive_modify=True))
    post(waiting.url, "submit", [name])
    delta = waiting.result()
    delta.freeze_module(exclude=["deltas"])
    torch.nn.init.ones_(next(p for key, p in delta.named_parameters() if key.endswith("lora_B")))
    expected = logits_of(backbone)
    delta.save_finetuned(tmp_path / "ckpt")
    copy = bert()
    LoraModel.from_finetuned(tmp_path / "ckpt", copy)

    assert torch.equal(expected, logits_of(copy))
    assert inputs_for(copy)


def test_a_cancelled_choice_leaves_the_backbone_alone(ask):
    backbone = bert()
    with untouched(backbone):
        waiting = ask(lambda: LoraModel(backbone, interactive_modify=True))
        post(waiting.url, "cancel")
        with pytest.raises(NothingChosenError, match=r"cancelled on the page\. Nothing was changed.*modified_modules="):
            waiting.result()


def test_ctrl_c_ends_it_and_frees_the_port(monkeypatch):
    def interrupted(session):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "wait", interrupted)
    backbone, port = bert(), free_port()
    with untouched(backbone), pytest.raises(KeyboardInterrupt):
        LoraModel(backbone, interactive_modify=port)
    with socket.socket() as listener:
        assert listener.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_one_clear_error():
    backbone = bert()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with untouched(backbone), pytest.raises(ConfigError, match=f"Port {port} of 127.0.0.1 is taken by another"):
            LoraModel(backbone, interactive_modify=port)


def test_true_finds_another_port_when_the_usual_one_is_taken(ask, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(choosing, "USUAL_PORT", other.getsockname()[1])
        waiting = ask(lambda: LoraModel(bert(), interactive_modify=True))
        post(waiting.url, "submit", QUERIES)
        assert list(waiting.result().insertions) == QUERIES


def test_a_name_that_is_taken_is_refused_before_anybody_is_asked():
    backbone = bert()
    LoraModel(backbone, name="mine")
    with pytest.raises(ConfigError, match="mine"):
        LoraModel(backbone, interactive_modify=True, name="mine")


def test_two_choices_have_different_secrets(ask):
    first = ask(lambda: LoraModel(bert(), interactive_modify=True))
    post(first.url, "cancel")
    second = ask(lambda: LoraModel(bert(), interactive_modify=True))
    post(second.url, "cancel")

    assert first.url.split("/")[3] != second.url.split("/")[3]
    assert len(first.url.split("/")[3]) >= 32
