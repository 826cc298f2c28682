"""Names that differ only in upper and lower case, as case-insensitive file systems and people confuse them."""

from __future__ import annotations

from deltahub.errors import ReferenceSyntaxError
from deltahub.stores.base import Store

_SUFFIX = ".json"


class Names:
    """The names in a registry; only the namespaces, and the names in those asked for, are listed, each once.

    Args:
        store: the registry's store.
        root: the common prefix of all reference documents' keys.
    """

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._listed: dict[str, dict[str, str]] = {}  # folder to its entries by their lower-case names

    def refuse_twin(self, path: str) -> None:
        """Add the name of a delta to be created.

        Raises:
            ReferenceSyntaxError: the name of another delta or namespace differs only in upper and lower case.
        """
        namespace, _, name = path.partition("/")
        file = f"{name}{_SUFFIX}"
        known = self._in("").setdefault(f"{namespace}/".lower(), f"{namespace}/").rstrip("/")
        theirs = self._in(f"{known}/").get(file.lower(), "")
        if theirs and f"{known}/{theirs}" != f"{namespace}/{file}":
            raise _twin(path, f"{known}/{theirs.removesuffix(_SUFFIX)}")
        if known != namespace and self._in(f"{known}/"):  # an empty folder is not a namespace
            raise _twin(namespace, known)
        self._in(f"{namespace}/")[file.lower()] = file

    def twin(self, path: str) -> str | None:
        """Return the stored name of a delta from its name in any upper and lower case; None if there is none."""
        namespace, _, name = path.lower().partition("/")
        folder = self._in("").get(f"{namespace}/", "")
        file = self._in(folder).get(f"{name}{_SUFFIX}") if folder else None
        return f"{folder}{file.removesuffix(_SUFFIX)}" if file else None

    def _in(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            found = self._store.children(f"{self._root}{folder}")
            self._listed[folder] = {name.lower(): name for name in found}
        return self._listed[folder]


def _twin(new: str, old: str) -> ReferenceSyntaxError:
    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
    return ReferenceSyntaxError(msg)
