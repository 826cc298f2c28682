"""Words of others reach a terminal and a log as text, and secrets reach neither."""

from __future__ import annotations

import io
import json
import logging

import pytest
from deltahub_cli.errors import print_traceback
from deltahub_cli.output import VisibleStream

from deltahub.errors import ConfigError, NotFoundError, RemovedError
from deltahub.log import LOGGER
from deltahub.sources.huggingface.calls import Calls
from deltahub.stores.bucket import Bucket, Patience
from deltahub.stores.bucket_clients import connect
from deltahub.text.credentials import header_value
from deltahub.text.visible import visible

HOSTILE = "\x1b]0;title\x07\x9b2J\r\u202ename\U000e0041\x7f"


def test_control_characters_are_escaped_as_json_escapes_them():
    shown = visible(HOSTILE)

    assert shown == "\\u001b]0;title\\u0007\\u009b2J\\u000d\\u202ename\\udb40\\udc41\\u007f"
    assert json.loads(f'"{shown}"') == HOSTILE
    assert visible(shown) == shown


def test_text_of_any_language_and_its_lines_stay():
    text = "na\u00efve \u2713 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\n\t\U0001f469\u200d\U0001f4bb"
    assert visible(text) == text


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(f"It is {HOSTILE}"),
        NotFoundError(HOSTILE, (HOSTILE,), (HOSTILE,)),
        RemovedError("acme/x@v1", "today", HOSTILE, HOSTILE),
    ],
)
def test_the_text_of_an_error_is_safe_to_print_and_its_fields_are_as_they_were(error):
    assert not set(str(error)) & set("\x1b\x07\x9b\u202e")
    assert HOSTILE in error.args or HOSTILE in error.args[0]


def test_a_warning_is_safe_whatever_handler_prints_it(caplog):
    with caplog.at_level(logging.WARNING, "deltahub"):
        LOGGER.warning("%s is odd", HOSTILE)
    assert caplog.messages == [f"{visible(HOSTILE)} is odd"]


def test_a_stream_escapes_all_writes_and_rich_finds_the_stream_behind_it():
    behind = io.StringIO()
    stream = VisibleStream(behind)
    print(HOSTILE, file=stream)
    stream.write("\r50%")
    stream.writelines(["\x1b[2K"])

    assert behind.getvalue() == f"{visible(HOSTILE)}\n\r50%\\u001b[2K"
    assert stream.rich_proxied_file is behind
    assert not hasattr(stream, "buffer")


def test_a_traceback_shows_no_secret_and_drives_no_terminal(capsys):
    error = OSError("Illegal header value b'Bearer dhub_0123456789abcdef_PASS6PASS6PASS6PASS6\\n'")
    error.__cause__ = ValueError(
        "https://ada:PASS1@host/x?key=PASS2&Signature=PASS3 /y?code=PASS4 Bearer PASS5PASS5 \x1b[2J"
    )
    print_traceback(error)

    told = capsys.readouterr().err
    assert "OSError: Illegal header value" in told
    assert "PASS" not in told
    assert "\x1b" not in told


@pytest.mark.parametrize("found", [" secret\n", "secret\r\n", "secret"])
def test_a_token_from_a_file_is_sent_without_its_line_end(monkeypatch, found):
    monkeypatch.setenv("TEAM_TOKEN", found)
    assert Calls("team", "http://127.0.0.1:9", token_variable="TEAM_TOKEN").token == "secret"
    assert Calls("team", "http://127.0.0.1:9", token=found).token == "secret"


def test_a_variable_with_white_space_only_is_no_token(monkeypatch):
    monkeypatch.setenv("TEAM_TOKEN", " \n")
    assert Calls("team", "http://127.0.0.1:9", token_variable="TEAM_TOKEN").token is False


@pytest.mark.parametrize("wrong", ["\u201csecret\u201d", "secret\nsecret", "sec ret", "secret\x00", "\udcffsecret"])
def test_a_token_invalid_in_a_header_is_refused_by_its_variable_and_not_shown(monkeypatch, wrong):
    monkeypatch.setenv("TEAM_TOKEN", wrong.replace("\x00", "\x01"))
    with pytest.raises(ConfigError, match="The environment variable TEAM_TOKEN holds") as caught:
        Calls("team", "http://127.0.0.1:9", token_variable="TEAM_TOKEN").headers()
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError):
        header_value(wrong, "It")


def test_keys_of_a_bucket_lose_their_line_ends_and_odd_ones_are_refused(monkeypatch):
    pytest.importorskip("obstore")
    for name, text in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE\n",
        "AWS_SECRET_ACCESS_KEY": "key\n",
        "AWS_REGION": "us-east-1\n",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9\n",
    }.items():
        monkeypatch.setenv(name, text)
    config = dict(connect(Bucket.parse("s3://deltas/x"), Patience())[0].config)
    assert (config["access_key_id"], config["region"]) == ("AKIAEXAMPLE", "us-east-1")

    monkeypatch.setenv("AWS_SESSION_TOKEN", "\u201ctoken\u201d")
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN"):
        connect(Bucket.parse("s3://deltas/x"), Patience())
