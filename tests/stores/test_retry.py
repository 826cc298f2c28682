"""A lost compare-and-swap is tried again until the attempts are used up; other errors end it at once."""

import pytest

from deltahub.errors import ConflictError, StorageError
from deltahub.stores.retry import SWAP_ATTEMPTS, SwapRetry


def attempts_until(error_at):
    """Return how often a swap was tried that fails as `error_at` says, given the number of the attempt."""
    retry, number = SwapRetry(), 0
    while True:
        number += 1
        with retry:
            if error := error_at(number):
                raise error
            return number


def test_lost_races_are_tried_again():
    assert attempts_until(lambda number: ConflictError("key", "a", "b") if number < 4 else None) == 4


def test_the_last_lost_race_is_raised():
    tried = []
    with pytest.raises(ConflictError):
        attempts_until(lambda number: tried.append(number) or ConflictError("key", "a", str(number)))
    assert len(tried) == SWAP_ATTEMPTS


def test_another_error_ends_it_at_once():
    tried = []
    with pytest.raises(StorageError):
        attempts_until(lambda number: tried.append(number) or StorageError("The disk is full."))
    assert tried == [1]
