"""Errors carry their facts, say them in one sentence, and travel between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from deltahub import errors
from deltahub.errors import (
    AddressError,
    CheckpointError,
    ConfigError,
    ConflictError,
    DeltaHubError,
    FingerprintMismatch,
    IntegrityError,
    NoMatchError,
    NotFoundError,
    NothingChosenError,
    PickleRefusedError,
    ProbeError,
    ReferenceSyntaxError,
    StorageError,
    TargetError,
    VerificationError,
    outcome,
)

EXAMPLES = [
    (DeltaHubError("It went wrong."), "It went wrong."),
    (ConfigError("lora_r must be at least 1, got 0."), "lora_r must be at least 1, got 0."),
    (AddressError("No."), "No."),
    (VerificationError("The outputs differ."), "The outputs differ."),
    (
        NoMatchError("atn", ("attn", "attn2"), "Look at deltahub inspect."),
        "No module matches 'atn'. The nearest names are: attn, attn2. Look at deltahub inspect.",
    ),
    (NoMatchError("atn", ()), "No module matches 'atn'."),
    (TargetError("A container."), "A container."),
    (
        NothingChosenError("its page was closed"),
        (
            "No module was chosen: its page was closed. Nothing was changed. Choose again, or pass modified_modules=[...] "
            "with names that `deltahub inspect` shows."
        ),
    ),
    (errors.MergeError("No."), "No."),
    (errors.RouteError("No."), "No."),
    (CheckpointError("No delta."), "No delta."),
    (
        errors.RemovedError("a/b@v1", "2026-01-02T03:04:05Z", "ada", "wrong data", ("v2", "v3")),
        "a/b@v1 was removed at 2026-01-02T03:04:05Z by ada: wrong data. Still there: v2, v3.",
    ),
    (
        errors.RemovedError("a/b", "2026-01-02T03:04:05Z", "ada"),
        "a/b was removed at 2026-01-02T03:04:05Z by ada. No version is left.",
    ),
    (errors.NoVersionError("a/b@v9", ("versions v1",)), "a/b@v9 was not found. Looked in: versions v1."),
    (
        errors.NotCachedError("a/b", ("local (/r)",), (), "hf:a/b", "DELTAHUB_OFFLINE is set"),
        (
            "a/b was not found. Looked in: local (/r). DELTAHUB_OFFLINE is set, so no other source was asked. "
            "Pull it beforehand where there is a network: deltahub pull hf:a/b"
        ),
    ),
    (
        errors.NotLockedError("a/b", "x.lock", ("a/c",)),
        (
            "a/b is not locked in x.lock. It holds a/c. "
            "Add it with `deltahub lock --add a/b -o x.lock`, or unset DELTAHUB_LOCK."
        ),
    ),
    (
        errors.InUseError("a/b@v1", "the alias prod points to it", "Move it first."),
        "a/b@v1 stays as it is: the alias prod points to it. Move it first.",
    ),
    (
        errors.RefusedMoveError("The move of a/b@prod from v1 to v2", "it needs a reason", "Give one."),
        "The move of a/b@prod from v1 to v2 is refused: it needs a reason. Give one.",
    ),
    (
        errors.ApprovalNeededError("The move of a/b@prod from v1 to v2", "2 others must approve it", "Ask for it."),
        "The move of a/b@prod from v1 to v2 is refused: 2 others must approve it. Ask for it.",
    ),
    (errors.MissingFolderError("There is no folder x."), "There is no folder x."),
    (PickleRefusedError("A pickle."), "A pickle."),
    (
        IntegrityError("w.bin", "5 bytes", "4 bytes", "Fetch it again."),
        "w.bin is damaged: expected 5 bytes, found 4 bytes. Fetch it again.",
    ),
    (IntegrityError("w.bin", "sha256:aa", "nothing"), "w.bin is damaged: expected sha256:aa, found nothing."),
    (
        errors.SignatureError("team:a/b@v1", "it is not signed", ("ab" * 32, "cd" * 32)),
        (
            "team:a/b@v1 is refused: expected a signature by abababababababab or cdcdcdcdcdcdcdcd, and it is not signed. "
            "Ask the owner of such a key to check and sign it: deltahub sign REF --key KEY"
        ),
    ),
    (
        FingerprintMismatch("incompatible", "missing a", "aa", "bb"),
        (
            "This delta was trained on another backbone (incompatible): missing a. Expected fingerprint aa, found bb. "
            "Load the backbone that the delta was trained on, or pass check_hash=False to attach it anyway (deltahub convert: --no-check-hash)."
        ),
    ),
    (
        ProbeError("the outputs differ by 0.1 at most"),
        (
            "The delta does not act as it did when it was saved: the outputs differ by 0.1 at most. Load it on the backbone that it was "
            "trained on, in its precision, with the releases that saved it."
        ),
    ),
    (
        FingerprintMismatch("other precision", "a is float16, expected float32", "aa", "bb"),
        (
            "This delta was trained on another backbone (other precision): a is float16, expected float32. "
            "Expected fingerprint aa, found bb. Load the backbone that the delta was trained on, or pass "
            'check_hash="structure" to accept other weights of the same shape, or check_hash=False to attach it anyway (deltahub convert: --no-check-hash).'
        ),
    ),
    (ReferenceSyntaxError("Bad name."), "Bad name."),
    (
        NotFoundError("a/b", ("local (/r)", "team (s3)"), ("a/c",)),
        "a/b was not found. Looked in: local (/r); team (s3). The nearest names are: a/c.",
    ),
    (NotFoundError("a/b"), "a/b was not found."),
    (
        ConflictError("refs/a.json", None, "ee"),
        (
            "refs/a.json: expected no entry, found ee. "
            "It may have been changed concurrently; nothing was overwritten. Check it and repeat."
        ),
    ),
    (StorageError("No space is left."), "No space is left."),
    (errors.MissingFileError("There is no file key.pem."), "There is no file key.pem."),
    (errors.UnreachableError("No answer."), "No answer."),
]
each_error = pytest.mark.parametrize(
    ("error", "sentence"),
    EXAMPLES,
    ids=[f"{number}-{type(error).__name__}" for number, (error, _) in enumerate(EXAMPLES)],
)


def test_every_error_class_has_an_example():
    known = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}

    assert {type(error) for error, _ in EXAMPLES} == known


@each_error
def test_the_message_says_what_happened(error, sentence):
    assert str(error) == sentence


@each_error
def test_the_repr_names_the_class_and_every_fact(error, sentence):
    assert repr(error) == f"{type(error).__name__}({', '.join(map(repr, error.args))})"


@each_error
@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_copying_and_pickling_with_all_its_fields(error, sentence, twin):
    found = twin(error)

    assert (type(found), found.args, vars(found), str(found)) == (type(error), error.args, vars(error), sentence)


@each_error
def test_one_except_clause_catches_them_all(error, sentence):
    with pytest.raises(DeltaHubError):
        raise error


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigError, ValueError),
        (AddressError, ValueError),
        (ReferenceSyntaxError, ValueError),
        (NotFoundError, LookupError),
        (StorageError, OSError),
        (PickleRefusedError, CheckpointError),
        (errors.MissingFolderError, CheckpointError),
    ],
)
def test_errors_are_also_the_matching_builtin_exceptions(error, builtin):
    assert issubclass(error, builtin)


@pytest.mark.parametrize(
    ("level", "soft"),
    [
        ("same structure, other weights", True),
        ("other precision", True),
        ("renamed", False),
        ("resized embeddings", False),
        ("incompatible", False),
    ],
)
def test_a_mismatch_is_soft_when_every_tensor_keeps_its_name_and_shape(level, soft):
    assert FingerprintMismatch(level, "", "aa", "bb").soft == soft


def test_an_outcome_is_the_result_of_a_call_or_its_error():
    missing = NotFoundError("acme/ner")

    def fail() -> str:
        raise missing

    assert outcome(lambda: "acme/ner@v1") == "acme/ner@v1"
    assert outcome(fail) is missing
    with pytest.raises(ZeroDivisionError):
        outcome(lambda: 1 / 0)
