"""How numbers, sizes, times and strange letters are written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from deltahub.server.pages.rendering import age, number, query, size, visible

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (1_400_000, "1.4 MB"),
        (999_999, "1.0 MB"),
        (5 * 10**12, "5.0 TB"),
    ],
)
def test_sizes_have_the_largest_unit(count, expected):
    assert size(count) == expected


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-05-04T11:59:30Z", "just now"),
        ("2026-05-04T12:30:00Z", "just now"),
        ("2026-05-04T11:58:59Z", "1 minute ago"),
        ("2026-05-04T09:00:00Z", "3 hours ago"),
        ("2026-05-02T11:00:00Z", "2 days ago"),
        ("2026-02-02T11:00:00", "3 months ago"),
        ("2020-01-01T00:00:00+00:00", "6 years ago"),
        ("no time", "no time"),
    ],
)
def test_times_are_shown_as_ages(time, expected):
    assert age(time, NOW) == expected


def test_metrics_are_short_and_counts_have_commas():
    assert [number(value) for value in (0.92551234, 1234567, "n/a", True, float("nan"))] == [
        "0.9255",
        "1,234,567",
        "n/a",
        "True",
        "nan",
    ]


def test_letters_that_hide_or_turn_others_are_shown_as_numbers():
    assert visible("a\u202eb\u200bc\x1bd\r\ne\tf") == "a\\u202eb\\u200bc\\u001bd\ne\tf"


def test_a_query_contains_only_given_conditions():
    assert query(q="a b", type="", tag=["x=y", "z"], page=None) == "?q=a+b&tag=x%3Dy&tag=z"
    assert query(q="") == ""
