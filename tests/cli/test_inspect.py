"""inspect with pictures and with the page, as a user types it."""

import json
import os
import re
import signal
import sys
import threading
import urllib.error
import urllib.request

import pytest

from deltahub.picker import choosing

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
VALUES = [f"bert.encoder.layer.{i}.attention.self.value" for i in range(3)]


@pytest.fixture
def backbone(tmp_path):
    """A folder with a config and no weights."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT))
    return folder


def test_the_tree_on_the_terminal_has_counts(run, backbone):
    text = run("inspect", backbone).stdout

    assert re.search(r"0-2\(BertLayer\) 3 × \d", text)


def test_pictures_are_saved_and_named_on_stdout(run, run_json, backbone, tmp_path):
    svg, html = tmp_path / "tree.svg", tmp_path / "tree.html"
    done = run("inspect", backbone, "--svg", svg, "--html", html)

    assert done.stdout == f"{svg}\n{html}\n"
    assert "0-2" in svg.read_text("utf-8")
    assert "BertForSequenceClassification" in html.read_text("utf-8")
    assert run_json("inspect", backbone, "--html", html) == {"html": str(html)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--port", "8888"], "add --web"),
        (["--web", "--svg", "x.svg"], "ask for one of them"),
        (["--web", "--port", "0"], "must be True or a port from 1 to 65535, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(run, backbone, arguments, why):
    done = run("inspect", backbone, *arguments)

    assert done.exit_code == 2
    assert why in " ".join(re.sub("[│\n]", " ", done.stderr).split())


def test_the_name_of_a_delta_is_distinguished_from_a_folder(run):
    done = run("inspect", "acme/ner")
    assert done.exit_code == 3
    assert (
        "There is no folder acme/ner. A delta that is not in a folder of yours is shown by: deltahub show"
        in done.stderr
    )


def test_a_delta_has_no_tree_to_save(run, ckpt):
    done = run("inspect", ckpt, "--html", "x.html")

    assert done.exit_code == 2
    assert "need a backbone's folder" in " ".join(re.sub("[│\n]", " ", done.stderr).split())


def test_an_unwritable_picture_is_one_clear_error(run, backbone, tmp_path):
    done = run("inspect", backbone, "--svg", tmp_path / "missing" / "tree.svg")

    assert done.exit_code == 6
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "missing" in done.stderr


def post(url, names):
    body = json.dumps({"names": names, "type": "lora"}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, body), timeout=60) as answer:
        return json.load(answer)


@pytest.fixture
def answered(run, backbone, monkeypatch):
    """Run `deltahub inspect --web` and send something to its page once it is there."""

    def choose(what, names, *arguments):
        def say(line, told=choosing._on_stderr):
            told(line)
            post(re.search(r"http://\S+", line).group() + what, names)

        monkeypatch.setattr(choosing, "_on_stderr", say)
        done = run("inspect", backbone, "--web", *arguments)
        building, page, *rest = done.stderr.splitlines()
        assert building.startswith("Building the modules of ")
        assert page.startswith("Choose modules on http://")
        return done, "\n".join(rest)

    return choose


def test_web_prints_a_line_that_is_ready_to_be_passed(answered):
    done, said = answered("submit", VALUES)

    assert (done.exit_code, done.stdout, said) == (0, 'modified_modules=["value"]\n', "")


def test_web_as_json_has_every_name(answered):
    done, _ = answered("submit", VALUES[1:], "--json")

    assert json.loads(done.stdout) == {
        "delta_type": "lora",
        "modified_modules": ["1.attention.self.value", "2.attention.self.value"],
        "modules": VALUES[1:],
    }


def test_a_cancelled_page_prints_nothing_and_says_why(answered):
    done, said = answered("cancel", [])

    assert (done.exit_code, done.stdout) == (1, "")
    assert said.startswith("Error: No module was chosen: the choice was cancelled on the page.")


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C is sent in another way")
def test_ctrl_c_ends_the_page(run, backbone, monkeypatch):
    pages = []

    def say(line):
        pages.append(re.search(r"http://\S+", line).group())
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(choosing, "_on_stderr", say)
    done = run("inspect", backbone, "--web")

    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "Interrupted; nothing was left half done."
    with pytest.raises(urllib.error.URLError):
        post(f"{pages[0]}cancel", [])
