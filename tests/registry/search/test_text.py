"""Words are found wherever they occur, with trigrams or without: the same deltas, in any script."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub.reference import DeltaPath, Digest
from deltahub.registry.entries import Version
from deltahub.registry.search import conditions, entry, tables
from deltahub.registry.search.conditions import Query

TEXTS = st.text(st.sampled_from("abcAB\u00e9\u4e2d\U0001f600 -_%*\"'\0\u0130\u00df"), max_size=12)


def found(message: str, text: str, *, frequent: bool = False) -> bool:
    """Whether a search for a text finds a delta with this message."""
    database = tables.connect(":memory:")
    version = Version(Digest("sha256:" + "0" * 64), "2026-01-02T03:04:05Z", "ada", message)
    delta = entry.CatalogueEntry(DeltaPath("q/q"), "v1", version, {}, 1, None)
    tables.SqliteTables(database).remember("refs/q/q.json", "1", delta)
    asked = conditions.parts(Query(text))
    where, values = conditions.joined(asked, None if frequent else conditions.fewest(database, asked))
    (count,) = database.execute(f"SELECT count(*) FROM deltas WHERE {where}", values).fetchone()
    database.close()
    return count == 1


@pytest.mark.slow
@pytest.mark.skipif(not tables.has_trigrams(), reason="this SQLite has no FTS5")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=TEXTS, text=TEXTS)
def test_trigrams_find_the_same_as_a_full_scan(monkeypatch, message, text):
    words = entry.searchable(f"q/q {message}")
    expected = all(word in words for word in entry.searchable(text).split())
    assert found(message, text) == expected
    assert found(message, text, frequent=True) == expected
    with monkeypatch.context() as patch:
        patch.setattr(tables, "has_trigrams", lambda: False)
        patch.setattr(conditions, "has_trigrams", lambda: False)
        assert found(message, text) == expected


def test_an_index_of_a_python_with_trigrams_is_made_anew_by_one_without(tmp_path, monkeypatch):
    path = tmp_path / "index.sqlite3"
    tables.connect(path).close()
    monkeypatch.setattr(tables, "has_trigrams", lambda: False)
    database = tables.connect(path)
    made = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert "texts" in made
    assert "trigrams" not in made
    database.close()
