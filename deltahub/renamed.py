"""Old names of modules and classes: importing one works, gives the one of today, and warns. They go with version 0.4."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

RENAMED: Final = {
    "address": "checkpoint.address",
    "archive": "registry.archive",
    "backbone": "checkpoint.backbone_record",
    "bundle": "registry.bundle",
    "cache.caretaking": "cache.maintenance",
    "cache.names": "cache.remembered",
    "cache.reading": "cache.cache",
    "card": "checkpoint.card",
    "config": "checkpoint.config",
    "configured": "settings.source_entry",
    "deltas.bottleneck": "deltas.adapter_layers",
    "deltas.hypercomplex": "deltas.compacter",
    "deltas.low_rank": "deltas.lora",
    "describing": "checkpoint.from_files",
    "engine.attended": "engine.attention_layers",
    "engine.compiling": "engine.guards",
    "engine.delta": "handle.base",
    "engine.drawing.svg": "engine.drawing.visualize",
    "engine.freezing": "handle.freezing",
    "engine.fused": "engine.weights",
    "engine.merging": "handle.merging",
    "engine.pseudo": "engine.dummy_inputs",
    "engine.routing.batching": "handle.routing",
    "engine.routing.detours": "engine.routing.rows",
    "engine.routing.route": "handle.routing",
    "engine.statistics": "handle.report",
    "engine.switching": "handle.switching",
    "engine.uncalled": "engine.ledger",
    "fitting": "checkpoint.backbone_fit",
    "formats.adapterhub": "formats.files",
    "formats.foreign": "formats.files",
    "formats.opendelta_biases": "formats.opendelta.reading",
    "formats.opendelta_names": "formats.opendelta.tensor_names",
    "formats.peft_adapter": "formats.peft.adapter",
    "formats.peft.backbone": "formats.backbone",
    "formats.peft.backbone_values": "formats.backbone_values",
    "formats.peft_backbone": "formats.backbone",
    "formats.peft_fields": "formats.peft.fields",
    "formats.peft_initial": "formats.peft.lora_reading",
    "formats.peft_lora": "formats.peft.lora_export",
    "formats.peft_lora_reading": "formats.peft.lora_reading",
    "formats.peft_mapping": "formats.peft.method_export",
    "formats.peft_matching": "formats.peft.module_matching",
    "formats.peft_names": "formats.peft.tensor_names",
    "formats.peft_naming": "formats.peft.module_matching",
    "formats.peft_reading": "formats.peft.reading",
    "formats.peft_saved": "formats.peft.saved_modules_export",
    "formats.peft_shapes": "formats.peft.shapes",
    "formats.peft_targets": "formats.peft.targets",
    "formats.peft_task": "formats.peft.method_export",
    "formats.peft_trained": "formats.peft.saved_modules",
    "formats.peft_values": "formats.backbone_values",
    "hub.copying": "hub.copy",
    "hub.lookup": "hub.hub",
    "hub.pinning": "hub.lockfile",
    "hub.pulling": "hub.pull",
    "hub.pushing": "hub.push",
    "hub.resolution": "hub.resolver",
    "loading": "handle.loading",
    "lockfile": "hub.lockfile",
    "manifest": "checkpoint.manifest",
    "metadata": "checkpoint.metadata",
    "naming": "checkpoint.default_name",
    "nearest": "text.suggestions",
    "offline": "settings.environment",
    "outcomes": "sources.base",
    "patterns": "text.patterns",
    "places": "settings.environment",
    "plain_text": "text.visible",
    "registry.amending": "registry.amend",
    "registry.collection": "registry.gc",
    "registry.conditions": "registry.search.conditions",
    "registry.facets": "registry.search.facets",
    "registry.forgetting": "registry.purge",
    "registry.halfway": "registry.registry",
    "registry.hub_documents": "registry.hub_records",
    "registry.index": "registry.search.index",
    "registry.integrity": "registry.document_check",
    "registry.marking": "registry.edits",
    "registry.merging": "registry.reconcile",
    "registry.publishing": "registry.publish",
    "registry.query": "registry.search.conditions",
    "registry.reading": "registry.registry",
    "registry.refreshing": "registry.search.refresh",
    "registry.removal": "registry.edits",
    "registry.renaming": "registry.rename",
    "registry.repair": "registry.verify",
    "registry.summary": "registry.entries",
    "registry.sweeping": "registry.gc_state",
    "registry.tables": "registry.search.tables",
    "registry.twins": "registry.case_collisions",
    "reserve": "files.reserve",
    "rights": "files.permissions",
    "saveload": "handle.saving",
    "schema": "files.documents",
    "sealing": "files.documents",
    "secrets": "text.credentials",
    "shortcuts": "api",
    "sized_cache": "files.sized_cache",
    "sources.choosing": "sources.catalog",
    "sources.huggingface.amending": "sources.huggingface.amend",
    "sources.huggingface.foreign": "sources.huggingface.unmanifested",
    "sources.huggingface.head": "sources.huggingface.snapshot",
    "sources.huggingface.marks": "sources.huggingface.git_tags",
    "sources.huggingface.packed": "sources.huggingface.snapshot",
    "sources.huggingface.publishing": "sources.huggingface.push",
    "sources.huggingface.searching": "sources.huggingface.search",
    "sources.huggingface.transfer": "sources.huggingface.download",
    "sources.huggingface.waiting": "sources.huggingface.calls",
    "sources.opening": "sources.catalog",
    "sources.web.asking": "sources.web.client",
    "sources.web.downloading": "sources.web.download",
    "sources.web.guarded": "sources.web.public_only",
    "sources.web.limits": "sources.web.client",
    "sources.web.tarball": "sources.web.bundle",
    "stores.claiming": "stores.local_files",
    "stores.conditional": "stores.bucket_upload",
    "stores.s3": "stores.bucket_store",
    "stores.s3_errors": "stores.bucket_errors",
    "stores.s3_upload": "stores.bucket_upload",
    "stores.uploading": "stores.bucket_upload",
    "stores.waiting": "stores.threads",
    "stores.walking": "stores.local_files",
    "syncing": "files.durable",
    "tensorfile": "handle.saving",
    "tensorheader": "checkpoint.safetensors_header",
    "web": "picker",
    "web.choosing": "picker.choosing",
    "web.document": "engine.drawing.html",
    "web.preview": "picker.preview",
    "web.selection": "picker.selection",
    "web.server": "picker.server",
    "web.session": "picker.session",
    "web.tree": "picker.tree",
}


class RenamedModules(MetaPathFinder, Loader):
    """Imports a module by its old name; asked only for what is found nowhere else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name of a module, None for any other name."""
        is_old_name = fullname.removeprefix("deltahub.") in RENAMED
        return ModuleSpec(fullname, self) if is_old_name and fullname.startswith("deltahub.") else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the old one."""
        new = f"deltahub.{RENAMED[module.__name__.removeprefix('deltahub.')]}"
        warnings.warn(f"{module.__name__} is now {new}.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


def forward(package: str, module: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a package that was a module, which looks up the names that moved into one of its modules."""

    def __getattr__(name: str) -> Any:  # noqa: N807  (PEP 562)
        if not name.startswith("__") and hasattr(moved := import_module(f"{package}.{module}"), name):
            warnings.warn(f"{package}.{name} is now {package}.{module}.{name}.", DeprecationWarning, stacklevel=2)
            return getattr(moved, name)
        msg = f"module {package!r} has no attribute {name!r}"
        raise AttributeError(msg)

    return __getattr__


def renamed_in(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module, which looks up classes by their old names, as in pickled models.

    Args:
        names: old name to the name of today.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  (PEP 562)
        if name not in names:
            msg = f"module {module!r} has no attribute {name!r}"
            raise AttributeError(msg)
        warnings.warn(f"{module}.{name} is now {module}.{names[name]}.", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return __getattr__
