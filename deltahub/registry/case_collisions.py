"""Names that differ only in upper and lower case: refused, as case-insensitive file systems and people confuse them."""

from __future__ import annotations

from typing import Final

from deltahub.errors import ReferenceSyntaxError
from deltahub.reference import DeltaPath, as_delta_path
from deltahub.registry.registry import REFS, Registry, ref_key

_SUFFIX: Final = ".json"


def refuse_twin(registry: Registry, path: DeltaPath, names: Names | None = None) -> None:
    """Refuse the name of a delta to be created if another one's differs only in upper and lower case.

    Args:
        names: the names in the registry, to share between many calls.

    Raises:
        ReferenceSyntaxError: there is such a delta or namespace.
    """
    if registry.store.read_tagged(ref_key(path)) is None:
        (names or Names(registry)).add(path)


class Names:
    """The names in a registry; only the namespaces, and the names in those asked for, are listed, each once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._listed: dict[str, dict[str, str]] = {}  # folder to its entries by their lower-case names

    def add(self, path: DeltaPath) -> None:
        """Add the name of a delta to be created.

        Raises:
            ReferenceSyntaxError: the name of another delta or namespace differs only in upper and lower case.
        """
        namespace, file = path.namespace, f"{path.name}{_SUFFIX}"
        present_namespace = self._in("").setdefault(f"{namespace}/".lower(), f"{namespace}/").rstrip("/")
        present_file = self._in(f"{present_namespace}/").get(file.lower(), "")
        if present_file and f"{present_namespace}/{present_file}" != f"{namespace}/{file}":
            raise _twin(path, f"{present_namespace}/{present_file.removesuffix(_SUFFIX)}")
        if present_namespace != namespace and self._in(f"{present_namespace}/"):  # an empty folder is not a namespace
            raise _twin(namespace, present_namespace)
        self._in(f"{namespace}/")[file.lower()] = file

    def twin(self, path: DeltaPath) -> DeltaPath | None:
        """Return the stored name of a delta from its name in any upper and lower case; None if there is none."""
        folder = self._in("").get(f"{path.namespace}/".lower(), "")
        file = self._in(folder).get(f"{path.name}{_SUFFIX}".lower()) if folder else None
        return as_delta_path(f"{folder}{file.removesuffix(_SUFFIX)}") if file else None

    def _in(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            names = self._registry.store.children(f"{REFS}{folder}")
            self._listed[folder] = {name.lower(): name for name in names}
        return self._listed[folder]


def _twin(new: str, old: str) -> ReferenceSyntaxError:
    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
    return ReferenceSyntaxError(msg)
