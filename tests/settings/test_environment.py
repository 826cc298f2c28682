"""Where the user's data lies."""

from pathlib import Path

import platformdirs
import pytest

from deltahub.settings.environment import cache_home, home


@pytest.mark.parametrize("home_is", ["", None])
def test_without_a_home_both_places_are_the_users_own(monkeypatch, home_is):
    monkeypatch.delenv("DELTAHUB_CACHE", raising=False)
    monkeypatch.delenv("DELTAHUB_HOME", raising=False)
    if home_is is not None:
        monkeypatch.setenv("DELTAHUB_HOME", home_is)
    assert home() == platformdirs.user_data_path("deltahub", appauthor=False)
    assert cache_home() == platformdirs.user_cache_path("deltahub", appauthor=False)


def test_the_cache_follows_a_home_unless_it_has_a_place_of_its_own(monkeypatch):
    monkeypatch.setenv("DELTAHUB_HOME", "/data/hub")
    monkeypatch.setenv("DELTAHUB_CACHE", "")
    assert cache_home() == Path("/data/hub/cache")
    monkeypatch.setenv("DELTAHUB_CACHE", "/fast")
    assert cache_home() == Path("/fast")
