"""Every test has folders of its own and no network."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from deltahub.cache.cache import Cache
from deltahub.checkpoint import checkpoint
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.publish import Publication
from deltahub.registry.publish import publish as publish_in
from deltahub.registry.registry import Registry
from deltahub.stores import local_files
from deltahub.stores.local import LocalStore
from tests.browsers import browser, contexts, keep, visit  # noqa: F401  (fixtures)
from tests.checkpoints import save_checkpoint
from tests.faults import Faults
from tests.postgres_server import postgres  # noqa: F401  (a fixture)
from tests.s3_servers import _s3, moto, proxy, s3, s3_keys, seaweed  # noqa: F401  (fixtures)

# torch and transformers are half a million objects, and to walk them took a tenth of all the time: it begins when all is imported.
gc.disable()
gc.set_threshold(20_000, 20, 20)

# huggingface_hub reads these once, when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Each of the many processes that tests start would compile the library anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many test processes run at once as keep the cores busy

# Each of the thousands of clients would read the certificates of 140 authorities, which vouch for no server of a test.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "fixtures" / "authority.pem")
os.environ.pop("SSL_CERT_DIR", None)

# A disk takes milliseconds for every sync, of which there are tens of thousands; what outlasts a power loss has tests of its own.
_MEMORY, _ENOUGH = Path("/dev/shm"), 2 << 30
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH:
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None  # it is asked for anew

_NOBODY = 65534

_S3 = {"azure", "bucket", "moto", "s3", "seaweed"}
_QUICK = 4
_SLOW_FILE = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)

# How long an example takes depends on what else the machine is doing, and decides nothing.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
settings.register_profile("quick", settings.get_profile("any-machine"), max_examples=15)
settings.load_profile("any-machine")


def _is_quick(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples in a quick run."""
    if _is_quick(config):
        settings.load_profile("quick")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import a file of slow tests in a quick run."""
    if _is_quick(config) and collection_path.suffix == ".py":
        return bool(_SLOW_FILE.search(collection_path.read_text("utf-8"))) or None
    return None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three for two cores, as some slow tests wait for a server; not more, as each worker imports all tests, which takes a core 30 seconds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if _is_quick(config) else cores + (cores + 1) // 2


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what `make quick` leaves out before the tests are chosen, and put them in order afterwards."""
    _leave_most_of_the_grids_to_the_whole_suite(items)
    yield
    items.sort(key=_turn)


def _leave_most_of_the_grids_to_the_whole_suite(items: list[pytest.Item]) -> None:
    """Mark as slow what needs an S3 server, other architectures than BERT, and three of four sets of parameters.

    A test of a contract is one test, however many types inherit it. Each begins at another set, so that all types have their turn.
    """
    grids: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        words = {value for value in parameters.values() if isinstance(value, str)}
        if _S3 & {*words, *item.fixturenames} or parameters.get("backbone", "bert") != "bert":  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.slow)
        else:
            grids.setdefault(f"{item.path.name}::{getattr(item, 'originalname', item.name)}", []).append(item)
    for name, grid in grids.items():
        for place, item in enumerate(grid if len(grid) >= _QUICK else ()):
            if (place + zlib.crc32(name.encode())) % _QUICK:
                item.add_marker(pytest.mark.slow)


def _turn(item: pytest.Item) -> int:
    """Put the slow tests first, so that the others fill the time until the last slow one is done.

    A worker begins with a piece of this list and takes from the end of another's when it has none left. So the first worker
    keeps the browser, which needs a core for itself, and the tests that are allowed to take minutes do not start last.
    """
    if item.get_closest_marker("slow") is None:
        return 2
    alone = "browser" in item.fixturenames or item.get_closest_marker("timeout") is not None  # type: ignore[attr-defined]
    return 0 if alone else 1


def pytest_collection_finish() -> None:
    """What was imported stays, and no more needs to be looked at."""
    gc.freeze()
    gc.enable()
    for logger in list(logging.Logger.manager.loggerDict.values()):
        # Pytest hangs its handlers on each logger that hands nothing to the root, six times a test; those of torch are fifty.
        if isinstance(logger, logging.Logger) and logger.name.startswith("torch"):
            logger.propagate = True


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """A test draws the same numbers whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` seeds devices too, which takes a millisecond


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """A test finds nothing compiled, whatever ran before it: PyTorch keeps eight graphs of one class."""
    yield
    if (frames := sys.modules.get("torch._dynamo.convert_frame")) and frames.input_codes.seen:
        sys.modules["torch"].compiler.reset()


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that are not there yet. Pytest's own are numbered by a look at all that are there, thousands of times."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / f"{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folders(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees this user's registry, cache or settings."""
    home = next(homes)
    home.mkdir()
    for variable, folder in (
        ("HOME", "user"),
        ("DELTAHUB_HOME", "deltahub"),
        ("DELTAHUB_CACHE", "deltahub-cache"),
        ("HF_HOME", "huggingface"),
        ("TORCH_HOME", "torch"),
        ("XDG_CACHE_HOME", "xdg-cache"),
        ("XDG_CONFIG_HOME", "xdg-config"),
        ("XDG_DATA_HOME", "xdg-data"),
    ):
        monkeypatch.setenv(variable, str(home / folder))
    monkeypatch.setenv("DELTAHUB_AUTHOR", "ada")
    monkeypatch.setenv(
        "DELTAHUB_OFFLINE", "0"
    )  # the servers of tests may be asked; for Hugging Face's, HF_HUB_OFFLINE stands
    for variable in ("DELTAHUB_LOCK", "DELTAHUB_NAMESPACE", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    yield
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def new_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves small checkpoints, each in a folder of its own; equal arguments give equal content."""
    count = 0

    def save(**content: object) -> Path:
        nonlocal count
        count += 1
        return save_checkpoint(tmp_path / f"checkpoint-{count}", **content)

    return save


@pytest.fixture
def checkpoint_folder(new_checkpoint: Callable[..., Path]) -> Path:
    """One small valid checkpoint."""
    return new_checkpoint()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry in a folder."""
    return Registry(LocalStore(tmp_path / "registry"))


@pytest.fixture
def hub(registry: Registry, tmp_path: Path) -> Hub:
    """A hub over `registry` with an empty cache."""
    return Hub({registry.name: registry}, Cache(tmp_path / "cache"))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A context in which a registry's document can be written only once some space was freed for it."""

    @contextmanager
    def full() -> Iterator[None]:
        write, full_now = local_files.write_synced, itertools.cycle([True, False])

        def limited(path: Path, data: bytes) -> None:
            if next(full_now):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(local_files, "write_synced", limited)
            yield

    return full


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Breaks any step in which the library writes to the disk."""
    return Faults(monkeypatch)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user of the machine can reach, unlike `tmp_path`."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """A call that gives up root's rights until the test ends; without root there are none to give up."""

    def become() -> None:
        if os.name != "nt" and os.geteuid() == 0:
            os.seteuid(_NOBODY)

    try:
        yield become
    finally:
        if os.name != "nt" and os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def publish(new_checkpoint):
    """Pushes small deltas, told apart by a number."""

    def pushed(registry, name="acme/ner", value=0.5, **options) -> str:
        folder = new_checkpoint(value=value)
        return publish_in(
            registry, Publication(Reference.parse(name), checkpoint.describe(folder), folder, **options)
        ).version

    return pushed
