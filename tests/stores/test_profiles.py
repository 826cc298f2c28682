"""Profiles of ~/.aws, and what goes before them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deltahub.errors import ConfigError
from deltahub.sources.web.client import Limits, Web
from deltahub.stores.profiles import Login, ca_bundle, login


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """Writes the two files of profiles of this user."""
    home = tmp_path / "user"
    (home / ".aws").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))

    def write(credentials: str = "", config: str = "") -> Path:
        (home / ".aws/credentials").write_text(credentials, "utf-8")
        (home / ".aws/config").write_text(config, "utf-8")
        return home

    return write


def keys(of: Login) -> tuple[str, str, str | None]:
    found = of.credentials()
    return found["access_key_id"], found["secret_access_key"], found["token"]


def test_a_profile_has_its_keys_region_and_server(profiles):
    profiles(
        "[work]\naws_access_key_id = A\naws_secret_access_key = B%C\naws_session_token = T\n",
        "[profile work]\nregion = eu-west-1\nendpoint_url = https://s3.example.org\n",
    )
    found = login("work")
    assert keys(found) == ("A", "B%C", "T")
    assert (found.region, found.endpoint) == ("eu-west-1", "https://s3.example.org")


def test_without_a_name_the_environment_s_keys_go_first(profiles, monkeypatch):
    profiles("[default]\naws_access_key_id = A\naws_secret_access_key = B\n[work]\naws_access_key_id = W\n")
    assert keys(login(None))[0] == "A"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert keys(login(None))[0] == "W"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    assert login(None) == Login()
    assert keys(login("work"))[0] == "W"


def test_without_any_file_the_machine_itself_is_asked(profiles):
    assert login(None) == Login()


def test_a_machine_that_is_not_to_be_asked_is_not(profiles, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="No credentials were found"):
        login(None)


def test_the_files_may_lie_elsewhere(profiles, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = A\n")
    (tmp_path / "settings").write_text("[default]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "settings"))
    found = login(None)
    assert (keys(found)[0], found.region) == ("A", "eu-west-1")


def test_an_unknown_profile_names_the_nearest(profiles):
    profiles("[work]\naws_access_key_id = A\n")
    with pytest.raises(ConfigError, match=r"There is no profile 'wrk' in .*credentials.*did you mean 'work'\?"):
        login("wrk")
    profiles()
    with pytest.raises(ConfigError, match="there is none at all"):
        login("wrk")


def test_a_profile_that_only_sets_a_region_leaves_the_keys_open(profiles):
    profiles(config="[default]\nregion = eu-west-1\n")
    assert login(None) == Login(None, "eu-west-1")


def test_a_profile_that_signs_in_needs_boto3(profiles, monkeypatch):
    profiles(config="[profile work]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match="signs in with role_arn, which needs the package boto3: pip install boto3"):
        login("work")


def test_a_profile_with_a_program_for_its_keys_works_with_boto3(profiles, tmp_path):
    program = tmp_path / "keys"
    program.write_text(
        f'#!{sys.executable}\nprint(\'{{"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "S"}}\')\n', "utf-8"
    )
    program.chmod(0o755)
    profiles(config=f"[profile work]\ncredential_process = {program}\n")
    assert keys(login("work"))[:2] == ("P", "S")


def test_a_damaged_file_is_one_sentence(profiles):
    profiles("no section")
    with pytest.raises(ConfigError, match=r"credentials cannot be read as a file of profiles"):
        login(None)


def test_certificates_of_a_private_ca_are_those_of_the_environment_or_of_the_profile(profiles, monkeypatch, tmp_path):
    for name in ("of-profile", "of-variable"):
        (tmp_path / f"{name}.pem").write_text(name)
    profiles(
        "", f"[default]\nca_bundle = {tmp_path}/of-profile.pem\n[profile other]\nca_bundle = {tmp_path}/gone.pem\n"
    )
    assert ca_bundle(None) == b"of-profile"
    with pytest.raises(ConfigError, match=r"gone\.pem cannot be read: No such file"):
        ca_bundle("other")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "of-variable.pem"))
    assert ca_bundle(None) == ca_bundle("other") == b"of-variable"


def test_links_take_the_certificates_that_hubs_and_buckets_take(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/corporate.pem")
    assert Web(Limits())._session.verify == "/etc/corporate.pem"
    monkeypatch.delenv("SSL_CERT_FILE")
    assert Web(Limits())._session.verify is True
