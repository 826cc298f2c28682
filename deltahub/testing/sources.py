"""The contract of a source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import ConfigError, DeltaHubError, NotFoundError, NoVersionError
from deltahub.hub.hub import Hub
from deltahub.reference import DeltaPath, Reference
from deltahub.registry.publish import Publication
from deltahub.registry.search.conditions import Query, Search
from deltahub.sources.base import Source
from deltahub.testing.backbones import bert, logits_of, stir


class SourceContract:
    """Tests that every source has to pass; a subclass has a fixture `source` that returns one with the delta `acme/ner` in it.

    The delta is the one of the fixture `folder`, which the subclass can ask for too.
    """

    PATH = DeltaPath("acme/ner")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Save a delta."""
        delta = LoraModel(bert(), lora_r=2)
        delta.freeze_module()
        stir(delta)
        delta.save_finetuned(tmp_path / "delta")
        return tmp_path / "delta"

    def test_a_delta_resolves_to_an_exact_version_with_the_digest_of_its_folder(
        self, source: Source, folder: Path
    ) -> None:
        resolved = source.resolve(Reference(self.PATH))

        assert resolved.digest == resolved.manifest.digest == describe(folder).digest
        exact = resolved.reference
        assert isinstance(exact, Reference)
        assert (exact.source, exact.path) == (source.name, self.PATH)
        assert exact.version
        assert source.resolve(exact).digest == resolved.digest

    def test_files_are_fetched_verified_and_never_over_another(self, source: Source, tmp_path: Path) -> None:
        resolved = source.resolve(Reference(self.PATH))
        for entry in resolved.manifest.files:
            resolved.fetch(entry, tmp_path / entry.path, None)
            assert hashlib.sha256((tmp_path / entry.path).read_bytes()).hexdigest() == entry.sha256
            with pytest.raises((FileExistsError, DeltaHubError)):
                resolved.fetch(entry, tmp_path / entry.path, None)

    def test_it_loads_as_from_its_folder(self, source: Source, folder: Path, tmp_path: Path) -> None:
        backbone, pulled = bert(), bert()
        AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)
        hub = Hub({source.name: source}, Cache(tmp_path / "cache"))
        AutoDeltaModel.from_finetuned(hub.pull(Reference(self.PATH)).folder, backbone_model=pulled)

        assert torch.equal(logits_of(backbone), logits_of(pulled))

    def test_a_missing_delta_is_not_found_and_the_error_names_the_place(self, source: Source) -> None:
        for ask in (source.resolve, lambda reference: source.document(reference.path)):
            with pytest.raises(NotFoundError) as caught:
                ask(Reference(DeltaPath("acme/other")))
            assert not isinstance(caught.value, NoVersionError)
            assert source.place in str(caught.value)

    def test_a_missing_version_is_an_error_of_its_own(self, source: Source) -> None:
        with pytest.raises(NoVersionError):
            source.resolve(Reference(self.PATH, version="v99"))

    def test_its_document_lists_the_version(self, source: Source) -> None:
        document, resolved = source.document(self.PATH), source.resolve(Reference(self.PATH))

        assert document.name == self.PATH
        assert document.resolve(None) == getattr(resolved.reference, "version", None)
        assert self.PATH in source.neighbours(DeltaPath("acme/nerr"))

    def test_a_search_finds_it_or_is_refused(self, source: Source) -> None:
        try:
            found, total = source.search(Search(Query("ner")))
        except ConfigError:
            return
        assert (total, [entry.name for entry in found]) == (1, [self.PATH])

    def test_the_same_content_again_is_no_new_version_or_pushes_are_refused(self, source: Source, folder: Path) -> None:
        manifest: Manifest = describe(folder)
        try:
            pushed = source.publish(Publication(Reference(self.PATH), manifest, folder))
        except ConfigError:
            return
        assert (pushed.new, pushed.digest) == (False, manifest.digest)
