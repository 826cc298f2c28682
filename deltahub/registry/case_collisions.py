"""Names that differ only in upper and lower case: refused, as case-insensitive file systems and people confuse them."""

from __future__ import annotations

from typing import Final

from deltahub.errors import ReferenceSyntaxError
from deltahub.reference import DeltaPath, as_delta_path
from deltahub.registry import name_table
from deltahub.registry.name_table import NameTable
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
    """The names in a registry; only the namespaces, and the names in those asked for, are listed, each once.

    A large namespace has a table, so that its names need not be listed: see `name_table`.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._listed: dict[str, dict[str, str]] = {}  # folder to its entries by their lower-case names
        self._tables: dict[str, NameTable | None] = {}
        self._added: dict[str, str] = {}  # names not stored yet, by their lower-case paths

    def add(self, path: DeltaPath) -> None:
        """Add the name of a delta to be created.

        Raises:
            ReferenceSyntaxError: the name of another delta or namespace differs only in upper and lower case.
            IntegrityError: the table of the namespace is damaged.
        """
        namespace = path.namespace
        present_namespace = self._in("").setdefault(f"{namespace}/".lower(), f"{namespace}/").rstrip("/")
        table = self._table(present_namespace, build=True)
        present = self._present(present_namespace, path.name)
        if present and f"{present_namespace}/{present}" != path:
            raise _twin(path, f"{present_namespace}/{present}")
        if present_namespace != namespace and (table or self._in(f"{present_namespace}/")):
            raise _twin(namespace, present_namespace)  # an empty folder is not a namespace
        self._added[path.lower()] = path.name
        if table:
            table.add(path.name)
        else:
            self._in(f"{namespace}/")[f"{path.name}{_SUFFIX}".lower()] = f"{path.name}{_SUFFIX}"

    def twin(self, path: DeltaPath) -> DeltaPath | None:
        """Return the stored name of a delta from its name in any upper and lower case; None if there is none."""
        namespace = self._in("").get(f"{path.namespace}/".lower(), "").rstrip("/")
        present = self._present(namespace, path.name) if namespace else None
        return as_delta_path(f"{namespace}/{present}") if present else None

    def _present(self, namespace: str, name: str) -> str | None:
        """Return the name of the delta in a namespace that equals a name but for upper and lower case."""
        if table := self._table(namespace, build=False):
            if added := self._added.get(f"{namespace}/{name}".lower()):
                return added
            present = table.find(name)
            return present if present and self._is_stored(f"{namespace}/{present}") else None
        file = self._in(f"{namespace}/").get(f"{name}{_SUFFIX}".lower())
        return file.removesuffix(_SUFFIX) if file else None

    def _is_stored(self, path: str) -> bool:
        return self._registry.store.read_tagged(ref_key(path)) is not None

    def _table(self, namespace: str, *, build: bool) -> NameTable | None:
        if self._tables.get(namespace) is None:
            self._tables[namespace] = NameTable.open(self._registry.store, namespace)
        if build and self._tables[namespace] is None:
            files = [file for file in self._in(f"{namespace}/").values() if file.endswith(_SUFFIX)]
            if len(files) > name_table.LARGE:
                names = [file.removesuffix(_SUFFIX) for file in files]
                self._tables[namespace] = NameTable.build(self._registry.store, namespace, names)
        return self._tables[namespace]

    def _in(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            names = self._registry.store.children(f"{REFS}{folder}")
            self._listed[folder] = {name.lower(): name for name in names}
        return self._listed[folder]


def _twin(new: str, old: str) -> ReferenceSyntaxError:
    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
    return ReferenceSyntaxError(msg)
