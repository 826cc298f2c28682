"""The contract of a delta type."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from deltahub import AutoDeltaModel, DeltaBase, Visualization, deltas_of, route
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import options_of
from deltahub.engine.site import is_delta_name
from deltahub.errors import ConfigError, MergeError, RouteError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.verify import verify
from deltahub.stores.memory import MemoryStore
from deltahub.testing.backbones import (
    BACKBONES,
    bert,
    equal,
    forward,
    inputs_for,
    logits_of,
    stir,
    tensors_of,
    train,
    untouched,
)


class DeltaContract:
    """Tests that every delta type has to pass; a subclass says which type it is, and what its formula promises.

    Attributes:
        delta_type: the name of the type.
        options: options to test it with; others take their defaults. Small sizes keep the tests fast.
        parameters: the number of its parameters on `testing.backbones.bert()`: two layers, width 16, feed-forward width 24.
        change_at_start: the largest change of a logit by a new delta; 0 if it starts as the identity, None if neither is promised.
        mergeable: whether it can be merged into the weights of a BERT.
        routable: whether rows of a batch can go through deltas of their own.
        unsuited: names of backbones that it cannot be put on, with the reason.
    """

    delta_type: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    parameters: ClassVar[int]
    change_at_start: ClassVar[float | None] = None
    mergeable: ClassVar[bool] = False
    routable: ClassVar[bool] = True
    unsuited: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(params=sorted(BACKBONES))
    def backbone(self, request: pytest.FixtureRequest) -> nn.Module:
        """Build one backbone of each kind."""
        if reason := self.unsuited.get(request.param):
            pytest.skip(f"{request.param}: {reason}")
        return BACKBONES[request.param]()

    def make(self, backbone: nn.Module, **options: Any) -> DeltaBase:
        """Put a new delta on a backbone."""
        return AutoDeltaModel.from_config({"delta_type": self.delta_type, **self.options}, backbone, **options)

    def trained(self, backbone: nn.Module) -> DeltaBase:
        """Put a delta on a backbone that has moved away from its start."""
        delta = self.make(backbone)
        delta.freeze_module()
        stir(delta)
        return delta

    # ----- a delta and its backbone -----

    def test_it_starts_as_the_identity_where_its_method_says_so(self, backbone: nn.Module) -> None:
        expected = logits_of(backbone)
        self.make(backbone)

        if self.change_at_start == 0:
            assert torch.equal(expected, logits_of(backbone))
        elif self.change_at_start is not None:
            assert 0 < (expected - logits_of(backbone)).abs().max() < self.change_at_start

    def test_training_moves_it_and_nothing_else(self, backbone: nn.Module) -> None:
        delta = self.make(backbone)
        delta.freeze_module()
        before, parameters = logits_of(backbone), {name: p.detach().clone() for name, p in delta.named_parameters()}
        base = {name: p.detach().clone() for name, p in backbone.named_parameters() if not is_delta_name(name)}
        train(backbone)

        assert not torch.equal(before, logits_of(backbone))
        assert any(not torch.equal(parameters[name], p) for name, p in delta.named_parameters())
        assert all(torch.equal(tensor, backbone.get_parameter(name)) for name, tensor in base.items())

    def test_gradients_reach_its_parameters_and_nothing_else(self, backbone: nn.Module) -> None:
        delta = self.trained(backbone)
        forward(backbone).square().mean().backward()  # type: ignore[no-untyped-call]

        with_gradient = {id(p) for p in backbone.parameters() if p.grad is not None}
        assert with_gradient == {id(parameter) for parameter in delta.parameters()}

    def test_detaching_restores_the_backbone_exactly(self, backbone: nn.Module) -> None:
        logits, tensors = logits_of(backbone), tensors_of(backbone)
        names = [name for name, _ in backbone.named_parameters()]
        delta = self.trained(backbone)
        changed = logits_of(backbone)
        delta.detach()

        assert not torch.equal(logits, changed)
        assert torch.equal(logits, logits_of(backbone))
        assert equal(tensors, tensors_of(backbone))
        assert names == [name for name, _ in backbone.named_parameters()]
        delta.attach()
        assert torch.equal(changed, logits_of(backbone))

    def test_the_backbone_keeps_its_own_keys(self, backbone: nn.Module) -> None:
        expected = list(backbone.state_dict())
        self.make(backbone)

        assert expected == [name for name in backbone.state_dict() if not is_delta_name(name)]

    def test_a_copy_has_parameters_of_its_own(self) -> None:
        backbone = bert()
        self.trained(backbone)
        expected = logits_of(backbone)
        twin = copy.deepcopy(backbone)
        assert torch.equal(expected, logits_of(twin))

        stir(deltas_of(twin)[self.delta_type], 9)
        assert torch.equal(expected, logits_of(backbone))
        assert not torch.equal(expected, logits_of(twin))

    def test_it_pickles_with_its_backbone(self) -> None:
        backbone = bert()
        self.trained(backbone)
        file = io.BytesIO()
        torch.save(backbone, file)
        file.seek(0)

        for twin in (pickle.loads(pickle.dumps(backbone)), torch.load(file, weights_only=False)):
            assert torch.equal(logits_of(backbone), logits_of(twin))
            deltas_of(twin)[self.delta_type].detach()
            assert torch.equal(logits_of(bert()), logits_of(twin))

    def test_its_parameters_are_as_many_as_its_formula_says(self) -> None:
        delta = self.make(bert())

        assert sum(parameter.numel() for parameter in delta.parameters()) == self.parameters
        assert delta.get_statistics()["delta_parameters"] == self.parameters

    def test_it_may_have_a_precision_of_its_own(self) -> None:
        backbone = bert().bfloat16()
        delta = self.trained(backbone)
        for insertion in delta.insertions.values():
            insertion.bfloat16()

        assert logits_of(backbone).dtype == torch.bfloat16

    def test_making_it_twice_gives_two(self) -> None:
        model = bert()
        names = [self.make(model).name for _ in range(2)]

        assert names == [self.delta_type, f"{self.delta_type}_1"]

    def test_it_tells_where_it_sits(self, backbone: nn.Module) -> None:
        delta = self.make(backbone)
        modules = dict(backbone.named_modules())

        assert delta.insertions
        assert set(delta.insertions) <= set(modules)
        assert all(name.rpartition(".deltas.")[0] in delta.insertions for name, _ in delta.named_parameters())

    def test_a_picture_of_the_backbone_shows_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        backbone = bert()
        delta = self.make(backbone)
        Visualization(backbone).structure_graph()

        shown = capsys.readouterr().out
        assert delta.name in shown
        assert any(type(insertion).__name__ in shown for insertion in delta.insertions.values())

    # ----- its options -----

    def test_unknown_options_are_refused(self) -> None:
        model = bert()

        with untouched(model), pytest.raises(ConfigError, match=f"{self.delta_type} has no option 'modified_module'"):
            self.make(model, modified_module=["query"])

    def test_values_of_another_type_are_refused(self) -> None:
        config_class: Any = type(self.make(bert()).config)
        for name, schema in options_of(config_class).items():
            wrong: Any = 1 if "object" in schema.get("type", ()) else {}
            with pytest.raises(ConfigError, match=name):
                config_class(**{name: wrong})

    def test_its_config_is_read_back_from_json(self) -> None:
        config: DeltaConfig = self.make(bert()).config

        assert type(config).from_dict(config.to_dict()) == config

    # ----- saved and loaded -----

    def test_it_is_saved_and_loaded_bit_for_bit(self, backbone: nn.Module, tmp_path: Path) -> None:
        fresh = copy.deepcopy(backbone)
        delta = self.trained(backbone)
        delta.save_finetuned(tmp_path)
        loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

        assert type(delta) is type(loaded)
        assert torch.equal(logits_of(backbone), logits_of(fresh))
        assert equal(delta.state_dict(), loaded.state_dict())

    def test_it_can_be_saved_from_what_was_loaded_and_detached(self, tmp_path: Path) -> None:
        backbone = bert()
        self.trained(backbone).save_finetuned(tmp_path / "first")
        again, last = bert(), bert()
        delta = AutoDeltaModel.from_finetuned(tmp_path / "first", backbone_model=again)
        delta.detach()
        delta.save_finetuned(tmp_path / "second")
        AutoDeltaModel.from_finetuned(tmp_path / "second", backbone_model=last)

        assert torch.equal(logits_of(backbone), logits_of(last))
        files = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("first", "second")]
        assert files[0] == files[1]

    def test_it_is_in_float32_on_a_backbone_in_half_precision_whose_outputs_stay_so(
        self, backbone: nn.Module, tmp_path: Path
    ) -> None:
        backbone = backbone.bfloat16()
        fresh = copy.deepcopy(backbone)
        delta = self.trained(backbone)
        assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}
        forward(backbone).float().square().mean().backward()  # type: ignore[no-untyped-call]

        delta.save_finetuned(tmp_path)
        AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)
        assert logits_of(backbone).dtype == torch.bfloat16
        assert torch.equal(logits_of(backbone), logits_of(fresh))

    def test_it_is_published_found_by_its_type_and_pulled(self, tmp_path: Path) -> None:
        backbone, fresh = bert(), bert()
        self.trained(backbone).save_finetuned(tmp_path / "delta")
        registry = Registry(MemoryStore(), "team")
        hub = Hub({"team": registry}, Cache(tmp_path / "cache"))
        pushed = hub.push(tmp_path / "delta", "acme/delta")

        matches, total = hub.search(Search(Query(delta_type=self.delta_type)))
        assert (total, [entry.name for entry in matches]) == (1, ["acme/delta"])
        assert [damage for _, damage in verify(registry)] == [None]
        assert pushed.digest == describe(tmp_path / "delta").digest
        AutoDeltaModel.from_finetuned(hub.pull(Reference.parse("acme/delta")).folder, backbone_model=fresh)
        assert torch.equal(logits_of(backbone), logits_of(fresh))

    # ----- merged and routed -----

    def test_it_merges_and_comes_out_to_the_last_byte_or_refuses(self) -> None:
        backbone = bert()
        delta = self.trained(backbone)
        if not self.mergeable:
            with untouched(backbone), pytest.raises(MergeError):
                delta.merge()
            return
        expected, tensors = logits_of(backbone), tensors_of(backbone)
        delta.merge()
        assert torch.allclose(expected, logits_of(backbone), atol=1e-4)
        delta.unmerge()
        assert torch.equal(expected, logits_of(backbone))
        assert equal(tensors, tensors_of(backbone))

    def test_rows_of_a_batch_go_through_it_alone_or_are_refused(self) -> None:
        backbone = bert()
        bare = logits_of(backbone)
        delta = self.trained(backbone)
        alone = logits_of(backbone)
        if not self.routable:
            with pytest.raises(RouteError), route(backbone, [delta, None]):
                backbone(**inputs_for(backbone))
            return
        with route(backbone, [delta, None]):
            routed = logits_of(backbone)
        assert torch.allclose(alone[0], routed[0], atol=1e-5)
        assert torch.allclose(bare[1], routed[1], atol=1e-5)
