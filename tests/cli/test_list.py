"""list, show, log, tag and alias as a user types them."""

import contextlib
import math
import sys

import numpy as np
import pytest
from deltahub_cli import output
from deltahub_cli.output import Output
from rich.progress import Progress
from safetensors.numpy import save_file

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import QUANTISED_VERSION, Fingerprint
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight
from tests.checkpoints import BACKBONE, DOCUMENT, save_checkpoint


@pytest.fixture
def three(run, tmp_path) -> None:
    """Three deltas with tags; one has two versions."""
    for number, (name, tags) in enumerate(
        [
            ("a/sst2-bert", "sst2,task=sst2"),
            ("a/ner-bert", "ner"),
            ("b/sst2-t5", "sst2"),
            ("a/sst2-bert", "task=sst2,v2"),
        ]
    ):
        folder = save_checkpoint(tmp_path / str(number), value=float(number))
        assert run("push", folder, name, "--tags", tags).exit_code == 0


def test_list_shows_the_newest_version_of_each_delta(run_json, three):
    listed = run_json("list")
    assert {("a/sst2-bert", "v2"), ("a/ner-bert", "v1"), ("b/sst2-t5", "v1")} == {
        (e["name"], e["version"]) for e in listed
    }


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["sst2"], {"a/sst2-bert", "b/sst2-t5"}),
        (["sst2 t5"], {"b/sst2-t5"}),
        (["--tag", "task=sst2"], {"a/sst2-bert"}),
        (["--tag", "sst2"], {"b/sst2-t5"}),
        (["--tags", "task=sst2,v2"], {"a/sst2-bert"}),
        (["--type", "lora"], {"a/sst2-bert", "a/ner-bert", "b/sst2-t5"}),
        (["--type", "adapter"], set()),
        (["--author", "nobody"], set()),
    ],
)
def test_list_finds_by_words_tags_type_and_author(run_json, three, arguments, names):
    assert names == {entry["name"] for entry in run_json("list", *arguments)}


def test_list_into_a_pipe_is_lines_with_tabs(run, three):
    (line,) = run("list", "ner").stdout.splitlines()
    assert [field for field in line.split("\t") if field][:4] == ["a/ner-bert", "v1", "lora", "ner"]


def test_a_table_on_a_terminal_has_a_header(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    Output(as_json=False, quiet=False).rows(("name", "tags"), [("me/x", "[red]sst2"), ("me/y", "")])
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "tags"]
    Output(as_json=False, quiet=False).rows(("name", "tags"), [("me/x", "[red]sst2")])
    assert "[red]sst2" in capsys.readouterr().out  # what users write is no markup


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("me/x", "me/x  v1       task=sst2 domain=movies  1.9 kB"),
        ("me/" + "x" * 50, "me/" + "x" * 50 + "  v1       task=ss…  1.9 kB"),
    ],
)
def test_a_narrow_table_ends_long_cells_in_an_ellipsis(monkeypatch, capsys, name, line):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    rows = [(name, "v1", "task=sst2 domain=movies", "1.9 kB")]
    Output(as_json=False, quiet=False).rows(("name", "version", "tags", "size"), rows)
    header, only = capsys.readouterr().out.splitlines()
    assert [column[:3] for column in header.split()] == ["nam", "ver", "tag", "siz"]
    assert len(only.rstrip()) <= 80
    assert only.rstrip() == line


def test_list_says_on_stderr_how_many_it_left_out(run, three):
    done = run("list", "--limit", "1")
    assert "1 of 3; --offset 1 shows the next; --limit 0 shows all." in done.stderr


def test_list_of_nothing_says_how_to_start(run):
    done = run("list")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "No deltas found." in done.stderr
    assert "deltahub push ./ckpt" in done.stderr
    assert run("list", "--quiet").output == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["sst3"], "To list all: deltahub list"), (["--type", "adapter"], "To list all: deltahub list")],
)
def test_a_search_that_finds_nothing_says_how_to_see_more(run, three, arguments, hint):
    done = run("list", *arguments)
    assert hint in done.stderr
    assert "deltahub push" not in done.stderr


def test_sorting_by_an_unknown_metric_is_reported(run, three):
    assert "No delta listed has the metric 'nme' to sort by." in run("list", "--sort", "nme").stderr
    assert "No delta listed" not in run("list", "--sort", "name").stderr


def test_the_log_says_why(run, ckpt, tmp_path):
    run("push", ckpt, "me/x", "-m", "first run")
    run("push", save_checkpoint(tmp_path / "other", value=2.0), "me/x", "-m", "second run")
    run("rm", "me/x@v2", "-m", "trained on the test set")
    first, _, last = run("log", "me/x").stdout.splitlines()
    assert first.endswith("\tfirst run")
    assert last.endswith("\ttrained on the test set")


def test_a_table_whose_names_leave_no_room_is_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    Output(as_json=False, quiet=False).rows(("folder", "reference"), [("/cache/" + "x" * 70, "local:me/x@v1")])
    assert capsys.readouterr().out == "/cache/" + "x" * 70 + "  local:me/x@v1\n"


def test_show_tells_everything(run, run_json, three):
    shown = run_json("show", "a/sst2-bert")
    assert (shown["version"], shown["tags"], list(shown["versions"])) == ("v2", ["task=sst2", "v2"], ["v1", "v2"])
    assert shown["parameters"] == {"delta": 8, "total": 10}
    text = run("show", "a/sst2-bert@v1").stdout
    for word in (
        "local:a/sst2-bert@v1",
        "sha256:",
        "bert-tiny (BertModel)",
        "delta.safetensors",
        "8 of the delta, 10 in all",
    ):
        assert word in text


def test_show_tells_where_each_alias_points(run, three):
    run("alias", "a/sst2-bert@v1", "champion")
    run("alias", "a/sst2-bert@v1", "prod")
    text = run("show", "a/sst2-bert").stdout
    assert "aliases\tnone\n" in text  # of the version that is shown
    assert "versions\tv1 (champion, prod) v2\n" in text


def test_show_lists_the_parents_of_a_delta(run, tmp_path):
    parents = [
        {"relation": "resumed", "digest": f"sha256:{'1' * 64}", "name": "local:a/b@v1"},
        {"relation": "converted", "digest": f"sha256:{'2' * 64}", "format": "opendelta"},
    ]
    tools = {"transformers_version": "5.23.0", "torch_version": "2.13.0"}
    facts = {"license": "apache-2.0"}
    folder = save_checkpoint(tmp_path / "child", parents=parents, backbone_revision="abc123", metadata=facts, **tools)
    run("push", folder, "a/child")
    text = run("show", "a/child").stdout

    assert (
        f"made from\tresumed from local:a/b@v1 sha256:{'1' * 64}; converted from opendelta sha256:{'2' * 64}\n" in text
    )
    assert "revision\tabc123\n" in text
    assert "license\tapache-2.0\n" in text
    assert "saved with\tdeltahub 0.1.0 transformers 5.23.0 torch 2.13.0\n" in text


def test_show_finds_a_version_by_the_start_of_its_digest(run_json, three):
    digest = run_json("show", "a/sst2-bert@v1")["digest"]
    assert run_json("show", f"a/sst2-bert@{digest[:20]}")["version"] == "v1"


def test_tags_are_added_and_removed(run, run_json, three):
    assert run_json("tag", "a/sst2-bert", "draft")["tags"] == ["draft", "task=sst2", "v2"]
    assert run_json("tag", "a/sst2-bert", "task=mnli", "v2-")["tags"] == ["draft", "task=mnli"]
    assert run_json("show", "a/sst2-bert@v1")["tags"] == ["sst2", "task=sst2"]


def test_an_alias_points_moves_and_goes(run, run_json, three):
    assert run_json("alias", "a/sst2-bert@v1", "champion")["version"] == "v1"
    assert run_json("show", "a/sst2-bert@champion")["version"] == "v1"
    assert run_json("alias", "a/sst2-bert", "champion")["version"] == "v2"
    assert run("alias", "a/sst2-bert", "champion", "--remove").stdout == "local:a/sst2-bert@champion is removed\n"
    assert run("show", "a/sst2-bert@champion").exit_code == 3


def test_an_alias_that_points_elsewhere_is_not_removed(run, run_json, three):
    run("alias", "a/sst2-bert@v1", "champion")
    done = run("alias", "a/sst2-bert@v2", "champion", "--remove")
    assert done.exit_code == 4
    assert "The alias a/sst2-bert@champion: expected v2, found v1." in done.stderr
    assert run("alias", "a/sst2-bert@champion", "champion", "--remove").exit_code == 0


def test_every_move_is_in_the_log(run, run_json, three):
    run("alias", "a/sst2-bert@v1", "champion")
    run("alias", "a/sst2-bert@v2", "champion")
    moves = [(m["action"], m["what"], m["before"], m["after"]) for m in run_json("log", "a/sst2-bert")]
    assert [move[0] for move in moves] == ["push", "push", "alias", "alias"]
    assert moves[2:] == [("alias", "champion", None, "v1"), ("alias", "champion", "v1", "v2")]
    assert "champion" in run("log", "a/sst2-bert").stdout


def test_removing_a_tag_that_is_not_there_names_those_that_are(run, three):
    done = run("tag", "a/ner-bert", "nerr-")
    assert done.exit_code == 3
    assert "The tag 'nerr' of a/ner-bert@v1 was not found. Looked in: tags ner." in done.stderr


def test_an_unknown_type_is_wrong_usage(run, three):
    done = run("list", "--type", "lra")
    assert done.exit_code == 2
    assert "did you mean 'lora'?" in " ".join(done.stderr.split())


def test_list_finds_by_metrics_and_sorts_by_them_page_by_page(run, run_json, tmp_path):
    for number in range(3):
        folder = save_checkpoint(tmp_path / str(number), value=number, metadata={"test_result": {"f1": number / 2}})
        assert run("push", folder, f"me/d{number}").exit_code == 0
    assert [e["name"] for e in run_json("list", "--metric", "f1>0.4", "--sort", "f1")] == ["me/d2", "me/d1"]
    page = run("list", "--sort", "f1", "--reverse", "--limit", "1", "--offset", "1")
    assert page.stdout.startswith("me/d1\t")
    assert "2 to 2 of 3; --offset 2 shows the next; --limit 0 shows all." in page.stderr
    assert "3 to 3 of 3; --limit 0 shows all." in run("list", "--limit", "1", "--offset", "2").stderr


@pytest.mark.parametrize("arguments", [["--metric", "f1"], ["--sort", "a'b"]])
def test_a_search_that_cannot_be_read_is_wrong_usage(run, arguments):
    assert run("list", *arguments).exit_code == 2


def test_list_finds_deltas_that_fit_a_backbone(run, run_json, three, tmp_path):
    from safetensors.numpy import save_file

    from tests.checkpoints import LEAVES

    save_file({leaf.name: np.zeros(leaf.shape, np.float32) for leaf in LEAVES}, tmp_path / "model.safetensors")
    assert len(run_json("list", "--fits", tmp_path)) == 3
    done = run("list", "--fits", tmp_path / "0")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert run("list", "--fits", tmp_path / "nowhere").exit_code == 1


def test_a_list_shows_how_far_a_first_index_is(run, three, monkeypatch, tmp_path):
    seen = []

    @contextlib.contextmanager
    def counting(out, what, things):
        yield lambda *said: seen.append((what, things, *said))

    monkeypatch.setattr(Output, "counting", counting)
    assert run("list").exit_code == 0
    assert seen == [("Indexing", "deltas", done, 3) for done in range(3)]


def test_a_slow_count_shows_progress(monkeypatch):
    updates = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "update", lambda bar, task, **what: updates.append(what))
    monkeypatch.setattr(output, "_FRAME", 0)
    for short in (math.inf, 0):
        monkeypatch.setattr(output, "_SHORT", short)
        with Output(as_json=False, quiet=False).counting("Indexing", "deltas") as counted:
            counted(0, 2)
            counted(1, 2)
    assert updates == [{"completed": 0, "total": 2}, {"completed": 1, "total": 2}]


def test_counts_read_as_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(output, "_SHORT", 0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with Output(as_json=False, quiet=False).counting("Indexing", "deltas") as counted:
        counted(1_000, 12_000)
    assert "1,000 of 12,000 deltas" in capsys.readouterr().err


@pytest.mark.parametrize("way", [{"quiet": True}, {"as_json": True}], ids=str)
def test_nothing_is_counted_without_a_terminal(monkeypatch, way):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    out = Output(as_json=way.get("as_json", False), quiet=way.get("quiet", False))
    with out.counting("Indexing", "deltas") as counted:
        assert counted is None


def test_an_offset_past_the_end_says_how_many_there_are(run, three):
    done = run("list", "--offset", "7")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "There are 3, so none from number 8 on." in done.stderr
    assert "deltahub push" not in done.stderr


def test_the_log_keeps_messages_as_json_after_removals_and_after_the_last_version(run, run_json, ckpt):
    run("push", ckpt, "me/x", "-m", "first run")
    assert [move["message"] for move in run_json("log", "me/x")] == ["first run"]
    run("rm", "me/x@v1", "-m", "trained on the test set")
    for reference in ("me/x", "me/x@v1"):
        moves = [(move["action"], move["message"]) for move in run_json("log", reference)]
        assert moves == [("push", "first run"), ("remove", "trained on the test set")]
    assert run("log", "me/x@v7").exit_code == 3


def test_every_command_names_a_delta_by_the_same_json_fields(run, run_json, ckpt):
    pushed = run_json("push", ckpt, "me/x")
    answers = [
        run_json("pull", "me/x"),
        run_json("show", "me/x"),
        *run_json("cache", "list"),
        run_json("cache", "show", "me/x"),
    ]
    (listed,) = run_json("list")
    assert (listed["reference"], listed["digest"]) == ("me/x@v1", pushed["digest"])
    for answer in answers:
        assert {key: answer[key] for key in ("reference", "digest")} == {
            "reference": "local:me/x@v1",
            "digest": pushed["digest"],
        }
        assert answer["size"] > 0
    assert run_json("rm", "me/x@v1")["reference"] == "local:me/x@v1"


def test_show_of_a_folder_shows_what_inspect_shows(run, ckpt):
    assert run("show", ckpt).stdout == run("inspect", ckpt).stdout
    assert "delta_type\tlora" in run("show", ckpt).stdout


def test_a_delta_is_told_with_its_variant_its_fixed_values_and_the_quantisation_of_its_backbone(
    run, run_json, tmp_path
):
    nf4 = Quantisation("nf4 (bitsandbytes)", 4, "bfloat16", "{}", ("weight",))
    record = Fingerprint(BACKBONE.leaves, QUANTISED_VERSION, (QuantisedWeight("layer.query.weight", (4, 4), nf4),))
    tensors = {
        "layer.query.deltas.places": np.zeros(3, np.int32),
        "layer.query.deltas.values": np.ones(3, np.float32),
    }
    options = {"delta_type": "weight_update", "method": "sparse", "backbone_hash": record.hash}
    document = {key: value for key, value in DOCUMENT.items() if key != "lora_r"} | options
    checkpoint.write(tmp_path / "a", document, tensors, record, "# A delta", save_file)
    run("push", tmp_path / "a", "me/sparse")

    assert "weight_update (sparse)" in run("list").stdout
    assert [entry["reference"] for entry in run_json("list", "sparse)")] == ["me/sparse@v1"]
    shown = run("show", "me/sparse").stdout
    for word in (
        "weight_update (sparse)",
        "3 of the delta, 3 fixed, 6 in all",
        "nf4 (bitsandbytes), 4 bits, 1 weights",
    ):
        assert word in shown
    assert run_json("show", "me/sparse")["parameters"] == {"delta": 6, "fixed": 3, "total": 6}
    inspected = run("inspect", tmp_path / "a").stderr
    for word in ("weight_update (sparse)", "6 parameters (3 of them fixed)", "nf4 (bitsandbytes), 4 bits"):
        assert word in inspected
