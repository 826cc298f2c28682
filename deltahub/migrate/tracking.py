"""Adapters in an MLflow tracking store: of registered models, of logged models, and among the artifacts of runs.

The PEFT flavour of a transformers model keeps its adapter in the folder `peft` of the model; any folder with the config of an adapter is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from deltahub.errors import ConfigError, StorageError, UnreachableError
from deltahub.migrate.candidate import Candidate, usable_aliases, usable_metrics, usable_tags

_CONFIGS: Final = ("adapter_config.json", "delta_config.json")
_NO_ADDRESS: Final = "ENDPOINT_NOT_FOUND"  # the error code of an address that a server does not have
_OWN: Final = "mlflow."  # keys of tags that MLflow itself sets


@dataclass(frozen=True)
class _Place:
    """A tree of artifacts with the facts that MLflow has of it.

    Attributes:
        candidate: what its deltas have in common; its folder is filled in for each.
        uri: the address of its artifacts.
    """

    candidate: Candidate
    uri: str


def in_tracking_store(uri: str) -> Iterator[Candidate]:
    """Find the adapters in a tracking store and its model registry; each only once.

    Args:
        uri: of the tracking store: a server, ``sqlite:///mlflow.db``, or a folder.

    Raises:
        ConfigError: MLflow is not installed.
        StorageError: the store cannot be read; UnreachableError: the server did not answer.
    """
    try:
        import mlflow  # late: an optional package
    except ImportError as error:
        msg = "Reading MLflow needs its package. Install it: pip install 'deltahub[mlflow]', or mlflow-skinny."
        raise ConfigError(msg) from error
    seen: set[str] = set()
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        for place in (*_registered(client), *_logged(client), *_runs(client)):
            for path in _adapters(place.uri, "", uri):
                address = f"{place.uri.rstrip('/')}/{path}".rstrip("/")
                if address not in seen:
                    seen.add(address)
                    yield _candidate(place, path, address, uri)
    except mlflow.exceptions.MlflowException as error:
        raise _sentence(uri, error) from error


def _candidate(place: _Place, path: str, address: str, uri: str) -> Candidate:
    """Return the candidate for one folder of artifacts; one below the usual `peft` is named by its path too."""
    common, parts = place.candidate, [part for part in path.split("/") if part not in ("", "peft", "model")]
    return replace(
        common,
        address=f"{common.address}/{path}".rstrip("/"),
        name="-".join((common.name, *parts)),
        folder=partial(_download, address, uri),
    )


def _registered(client: Any) -> Iterator[_Place]:
    for model in _pages(client.search_registered_models):
        query = partial(client.search_model_versions, f"name='{model.name}'")
        for version in sorted(_pages(query), key=lambda version: int(version.version)):
            metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
            address = f"mlflow:models:/{model.name}/{version.version}"
            tags = _tags({**dict(model.tags or {}), **dict(version.tags or {})})
            common = Candidate(
                address,
                model.name,
                Path(),
                tags,
                usable_metrics(metrics),
                usable_aliases(alias for alias, of in (model.aliases or {}).items() if str(of) == str(version.version)),
                is_version=True,
            )
            yield _Place(common, client.get_model_version_download_uri(model.name, version.version))


def _logged(client: Any) -> Iterator[_Place]:
    """Find the logged models; a server of MLflow 2 has none, and no such address."""
    from mlflow.exceptions import MlflowException

    experiments = _experiments(client)
    try:
        models = list(_pages(partial(client.search_logged_models, experiment_ids=experiments)))
    except MlflowException as error:
        if error.error_code != _NO_ADDRESS:
            raise
        return
    for model in models:
        metrics = usable_metrics({metric.key: metric.value for metric in model.metrics or ()})
        common = Candidate(
            f"mlflow:models:/{model.model_id}", f"{model.name}-{model.model_id}", Path(), _tags(model.tags), metrics
        )
        yield _Place(common, model.artifact_location)


def _runs(client: Any) -> Iterator[_Place]:
    for run in _pages(partial(client.search_runs, _experiments(client))):
        name = run.info.run_name or run.info.run_id
        tags, metrics = _tags(run.data.tags), usable_metrics(run.data.metrics)
        address = f"mlflow:runs:/{run.info.run_id}"
        yield _Place(Candidate(address, f"{name}-{run.info.run_id[:8]}", Path(), tags, metrics), run.info.artifact_uri)


def _experiments(client: Any) -> list[str]:
    return [experiment.experiment_id for experiment in _pages(client.search_experiments)]


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Iterate over all results of one of MLflow's searches, which are paged."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _adapters(root: str, path: str, tracking_uri: str) -> Iterator[str]:
    """Yield the paths of folders with the config of an adapter, relative to a tree of artifacts."""
    from mlflow.artifacts import list_artifacts

    address = f"{root.rstrip('/')}/{path}".rstrip("/")
    entries = list_artifacts(artifact_uri=address, tracking_uri=tracking_uri)
    if any(entry.path.rpartition("/")[2] in _CONFIGS for entry in entries if not entry.is_dir):
        yield path
    for entry in entries:
        if entry.is_dir:
            name = entry.path.rpartition("/")[2]
            yield from _adapters(root, f"{path}/{name}".lstrip("/"), tracking_uri)


def _download(address: str, tracking_uri: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=address, dst_path=str(into), tracking_uri=tracking_uri))
    except MlflowException as error:
        raise _sentence(address, error) from error


def _tags(tags: Any) -> tuple[str, ...]:
    pairs = {key: value for key, value in dict(tags or {}).items() if not key.startswith(_OWN)}
    return usable_tags(f"{key}={value}" for key, value in pairs.items())


def _sentence(place: str, error: Exception) -> StorageError:
    text = " ".join(str(error).split())[:500]
    kind = UnreachableError if "Max retries exceeded" in text else StorageError
    return kind(f"MLflow cannot read {place}: {text}. Check its address.")
