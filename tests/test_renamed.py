import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

import deltahub.files
from deltahub.renamed import RENAMED


def test_every_old_name_leads_to_a_module_that_is_there():
    assert [old for old, new in RENAMED.items() if find_spec(f"deltahub.{new}") is None] == []
    packages = {old.rpartition(".")[0] for old in RENAMED if "." in old}
    assert [
        package for package in packages if package not in RENAMED and find_spec(f"deltahub.{package}") is None
    ] == []


def test_an_old_name_gives_the_module_of_today_and_a_warning():
    script = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from deltahub.registry.marking import set_alias\n"
        "    from deltahub import checkpoint\n"
        "    from deltahub.files import scratch\n"
        "    describe = checkpoint.describe\n"
        "import deltahub.checkpoint.checkpoint, deltahub.registry.edits\n"
        "assert set_alias is deltahub.registry.edits.set_alias\n"
        "assert describe is deltahub.checkpoint.checkpoint.describe\n"
        "print(*(f'{one.category.__name__} {one.filename} {one.message}' for one in caught), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert sorted(set(done.stdout.splitlines())) == [
        "DeprecationWarning <string> deltahub.checkpoint.describe is now deltahub.checkpoint.checkpoint.describe.",
        "DeprecationWarning <string> deltahub.files.scratch is now deltahub.files.atomic.scratch.",
        "DeprecationWarning <string> deltahub.registry.marking is now deltahub.registry.edits.",
    ]


def test_a_name_that_never_was_is_an_import_error_as_ever():
    with pytest.raises(ModuleNotFoundError):
        find_spec("deltahub.nothing.here")
    for package in (deltahub, deltahub.files):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("prefix", "MadePrefix", "ReparameterizedPrefix"),
        ("parallel_adapter", "StretchStart", "SpanStart"),
        ("parallel_adapter", "StretchEnd", "SpanEnd"),
        ("soft_tokens", "LongerMask", "MaskExtension"),
    ],
)
def test_an_insertion_is_found_by_its_old_name_as_in_a_pickled_model(module, old, new):
    module = import_module(f"deltahub.deltas.{module}")
    with pytest.warns(DeprecationWarning, match=rf"{old} is now .*\.{new}\."):
        assert getattr(module, old) is getattr(module, new)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        module.Nothing  # noqa: B018
