import pytest
import torch

from patchform.errors import ModelFileError, UsageError
from patchform.weights.cross_family import CrossFamily
from patchform.weights.load_report import Entry
from patchform.weights.operations import join, join_shares, permute, reshape, squeeze
from patchform.weights.rules import DROP, Drop, Rules, prefix, recognise

WINDOWED = Rules(
    ("patch_embed.proj.weight", "backbone.patches.weight", reshape(-1, "channels", "patch", "patch")),
    ("patch_embed.proj.bias", "backbone.patches.bias"),
    ("cls_token", "backbone.token", squeeze(0, 1)),
    ("layers.{s+1}.downsample.{p}", "backbone.stages.{s}.downsample.{p}"),
    (("layers.{s}.{b}.q.{p}", "layers.{s}.{b}.k.{p}", "layers.{s}.{b}.v.{p}"), "backbone.stages.{s}.{b}.qkv.{p}", join),
    (("layers.{s}.{b}.cross.q", "layers.{s}.{b}.cross.kv"), "backbone.stages.{s}.{b}.cross", join_shares(1, 2)),
    ("layers.{s}.{b}.kernel", "backbone.stages.{s}.{b}.kernel", permute(2, 0, 1)),
    ("*.relative_position_index", DROP),
    ("layers.{s}.{b}.norm.*", "backbone.stages.{s}.{b}.norm.*"),
    ("head.fc.{p}", "head.classifier.{p}"),
    ("norm.{p}", "backbone.norm.{p}"),
)
SIZES = {"channels": 3, "patch": 4}


def published():
    """A state dict of the layout above with two stages of two blocks."""
    shapes = {
        "patch_embed.proj.weight": (8, 3, 4, 4),
        "patch_embed.proj.bias": (8,),
        "cls_token": (1, 1, 8),
        "layers.1.downsample.weight": (8, 8),
        "norm.weight": (8,),
        "norm.num_batches_tracked": None,
        "head.fc.weight": (5, 8),
        "head.fc.bias": (5,),
    }
    for block in ("layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"):
        shapes |= {f"{block}.{name}.weight": (8, 8) for name in "qkv"} | {
            f"{block}.{name}.bias": (8,) for name in "qkv"
        }
        shapes |= {f"{block}.cross.q": (4, 8), f"{block}.cross.kv": (8, 8), f"{block}.kernel": (2, 3, 5)}
        shapes |= {f"{block}.norm.deep.weight": (8,), f"{block}.attn.relative_position_index": (2, 2)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7) if shape is None else torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def places():
    """The model's state dict, as shapes on the meta device."""
    shapes = {
        "backbone.patches.weight": (8, 48),
        "backbone.patches.bias": (8,),
        "backbone.token": (8,),
        "backbone.stages.0.downsample.weight": (8, 8),
        "backbone.norm.weight": (8,),
        "head.classifier.weight": (5, 8),
        "head.classifier.bias": (5,),
    }
    for block in ("0.0", "0.1", "1.0", "1.1"):
        block = f"backbone.stages.{block}"
        shapes |= {f"{block}.qkv.weight": (24, 8), f"{block}.qkv.bias": (24,), f"{block}.cross": (12, 8)}
        shapes |= {f"{block}.kernel": (5, 2, 3), f"{block}.norm.deep.weight": (8,)}
    own = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return own | {"backbone.norm.num_batches_tracked": torch.empty((), dtype=torch.int64, device="meta")}


def test_every_tensor_finds_its_place():
    source = published()
    filled, report = WINDOWED.load(source, places(), sizes=SIZES)
    assert list(filled) == list(places())
    assert torch.equal(filled["backbone.patches.weight"], source["patch_embed.proj.weight"].flatten(1))
    assert torch.equal(filled["backbone.token"], source["cls_token"][0, 0])
    assert torch.equal(filled["backbone.stages.0.downsample.weight"], source["layers.1.downsample.weight"])
    parts = [source[f"layers.1.0.{name}.weight"] for name in "qkv"]
    assert torch.equal(filled["backbone.stages.1.0.qkv.weight"], torch.cat(parts))
    assert torch.equal(filled["backbone.stages.0.1.kernel"], source["layers.0.1.kernel"].permute(2, 0, 1))
    assert filled["backbone.norm.num_batches_tracked"] == 7

    fates = [len(report.of(fate)) for fate in ("matched", "joined", "converted")]
    assert fates == [10, 12, 6]
    index = "layers.0.0.attn.relative_position_index"
    assert report.dropped[0] == Entry("dropped", index, (index,), DROP.why)
    assert sum(fates) == len(places()) == len(report.entries) - len(report.dropped)
    assert str(report).startswith("10 matched, 12 joined, 6 converted, 4 dropped\n  dropped, follows from the arch")


def test_round_trip_is_exact():
    source = published()
    filled, _ = WINDOWED.load(source, places(), sizes=SIZES)
    written = WINDOWED.dump(filled, sizes=SIZES)
    assert set(written) == {name for name in source if "index" not in name}
    assert all(torch.equal(tensor, source[name]) for name, tensor in written.items())
    again, _ = WINDOWED.load(written, places())
    assert all(torch.equal(tensor, filled[name]) for name, tensor in again.items())


def without(name):
    return lambda source, own: source.pop(name)


def with_source(name, *shape):
    return lambda source, own: source.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("norm.weight"), "backbone.norm.weight is not filled: the source has no norm.weight"),
        (without("layers.1.0.k.bias"), "stages.1.0.qkv.bias is not filled: the source has no layers.1.0.k.bias"),
        (
            with_source("patch_embed.norm.bias", 8),
            r"no rule for patch_embed.norm.bias \(nearest: patch_embed.proj.bias",
        ),
        (with_source("layers.0.downsample.weight", 8, 8), "no rule for layers.0.downsample.weight"),
        (with_source("layers.01.downsample.weight", 8, 8), "no rule for layers.01.downsample.weight"),
        (with_source("layers.2.downsample.weight", 8, 8), "the model has no backbone.stages.1.downsample.weight"),
        (with_source("norm.weight", 9), r"norm.weight \(9,\) does not suit backbone.norm.weight of shape \(8,\)"),
        (with_source("cls_token", 1, 2, 8), r"cls_token \(1, 2, 8\) does not suit backbone.token"),
        (with_source("patch_embed.proj.weight", 8, 12, 2, 2), r"\(8, 12, 2, 2\) does not suit backbone.patches.weight"),
        (with_source("patch_embed.proj.weight", 8, 3, 2, 8), r"\(8, 3, 2, 8\) does not suit backbone.patches.weight"),
        (with_source("patch_embed.proj.weight", 8, 48), "the source is not of shape"),
        (with_source("layers.0.0.cross.q", 6, 8), "cannot become backbone.stages.0.0.cross"),
        (with_source("layers.0.0.kernel", 6, 5), "cannot become backbone.stages.0.0.kernel"),
        (
            with_source("norm.num_batches_tracked"),
            "is torch.float32, and backbone.norm.num_batches_tracked is torch.int",
        ),
        (
            lambda source, own: own.update({"backbone.stages.0.0.scale": torch.zeros(8)}),
            r"no rule fills backbone.stages.0.0.scale \(nearest: backbone.stages",
        ),
    ],
)
def test_what_does_not_fit_is_named(spoil, said):
    source, own = published(), places()
    spoil(source, own)
    with pytest.raises(ModelFileError, match=said):
        WINDOWED.load(source, own, sizes=SIZES)


def test_parts_of_other_lengths_are_not_joined():
    rules = Rules((("q", "k"), "qk", join))
    with pytest.raises(ModelFileError, match="not of the expected lengths"):
        rules.load({"q": torch.zeros(3), "k": torch.zeros(5)}, {"qk": torch.zeros(8)})
    with pytest.raises(ModelFileError, match="does not part into shares"):
        rules.dump({"qk": torch.zeros(7)})


def test_nothing_is_used_twice():
    rules = Rules(("old.{p}", "new.{p}"), ("older.{p}", "new.{p}"))
    tensor = torch.zeros(1)
    with pytest.raises(ModelFileError, match=r"older.a fills new.a, which is made from old.a"):
        rules.load({"old.a": tensor, "older.a": tensor}, {"new.a": tensor})
    with pytest.raises(ModelFileError, match="y is not filled: a goes elsewhere"):
        Rules(("a", "x"), ("a", "y")).load({"a": tensor}, {"x": tensor, "y": tensor})
    with pytest.raises(ModelFileError, match=r"y would be written as a, which is there already"):
        Rules(("a", "x"), ("a", "y")).dump({"x": tensor, "y": tensor})


def test_rules_that_differ_on_the_way_back_are_refused():
    tensor = torch.zeros(1)
    with pytest.raises(ModelFileError, match="not filled"):
        Rules(("a", "x"), ("{n}", "x{n}"), ("b", "xc")).load({"b": tensor}, {"xb": tensor, "xc": tensor})
    shadowed = Rules(("*.b", Drop("not wanted")), ("{a}.b", "own.{a}"))
    with pytest.raises(ModelFileError, match=r"own.x is not filled: x.b goes elsewhere"):
        shadowed.load({"x.b": tensor}, {"own.x": tensor})


@pytest.mark.parametrize(
    "rule",
    [("a.{x}", "b.{y}"), ("a.*", "b"), ("a.{x", "b.{x"), ("a.{x+1}", "b.{x+}"), (("q", "k"), "qk"), ("qk", ("q", "k"))],
)
def test_rules_that_cannot_run_both_ways_are_refused(rule):
    with pytest.raises(UsageError):
        Rules(rule)


def test_a_length_that_our_shape_does_not_tell_must_be_given():
    with pytest.raises(UsageError, match="channels"):
        WINDOWED.dump({"backbone.patches.weight": torch.zeros(8, 48)})
    with pytest.raises(ModelFileError, match=r"no rule for backbone.patch.weight"):
        WINDOWED.dump({"backbone.patch.weight": torch.zeros(8, 48)})


def test_offsets_shift_numbers_only():
    rules = Rules(("norm{i+1}.{j-2}.{p}", "{i}.{j}.{p}"))
    tensor = torch.zeros(1)
    assert list(rules.dump({"0.2.weight": tensor, "9.12.weight": tensor})) == ["norm1.0.weight", "norm10.10.weight"]
    assert list(rules.load({"norm10.10.weight": tensor}, {"9.12.weight": tensor})[0]) == ["9.12.weight"]
    for name in ("0.1.weight", "a.2.weight"):
        with pytest.raises(ModelFileError, match="no rule"):
            rules.dump({name: tensor})


def test_a_placeholder_that_comes_twice_is_one_value():
    rules = Rules(("{a}.x.{a}", "{a}"))
    assert rules.plan(["1.x.1", "1.x.2"], ["1"], {}).faults == ("no rule for 1.x.2",)


def test_prefix_goes_deeper_on_both_sides():
    inner = Rules(("a.{p}", "b.{p}"), (("q", "k"), "qk", join), ("*.index", DROP))
    rules = Rules(*prefix(inner, "module.", "backbone."), ("fc", "head"))
    source = {name: torch.ones(2) for name in ("module.a.x", "module.q", "module.k", "module.a.y.index", "fc")}
    own = {"backbone.b.x": torch.ones(2), "backbone.qk": torch.ones(4), "head": torch.ones(2)}
    filled, report = rules.load(source, own)
    assert set(filled) == set(own)
    assert report.of("joined") == (Entry("joined", "backbone.qk", ("module.q", "module.k")),)
    with pytest.raises(ModelFileError, match=r"no rule for a.x"):
        rules.load({**source, "a.x": torch.ones(2)}, own)


def test_recognise_names_the_layout_by_which_every_tensor_finds_its_place():
    layouts = {"windowed": WINDOWED, "wrapped": prefix(WINDOWED, "module.", "")}
    own = places()
    assert recognise(layouts, published(), own) == "windowed"
    wrapped = {f"module.{name}": tensor for name, tensor in published().items()}
    assert recognise(layouts, wrapped, own) == "wrapped"
    said = r"for windowed, the nearest, \d+ of the tensors do not fit: no rule for conv1"
    with pytest.raises(ModelFileError, match=said):
        recognise(layouts, {"conv1": torch.zeros(1), **published()}, own)
    twin = Rules(("a.{n}", "x.{n}")), Rules(("a.1", "x.2"), ("a.2", "x.1"))
    two = {"a.1": torch.zeros(1), "a.2": torch.zeros(1)}
    with pytest.raises(ModelFileError, match="several layouts: one, other"):
        recognise({"one": twin[0], "other": twin[1]}, two, {"x.1": torch.zeros(1), "x.2": torch.zeros(1)})
    assert recognise({"one": twin[0], "same": twin[0]}, two, {"x.1": two["a.1"], "x.2": two["a.2"]}) == "one"
    with pytest.raises(ModelFileError, match="do not fit"):
        recognise(layouts, {}, own)
    with pytest.raises(ModelFileError, match="no layout of published weights"):
        recognise({}, two, own)


def test_what_is_spared_is_neither_filled_nor_used():
    rules = Rules(("a.{p}", "backbone.{p}"), ("h.{p}", "head.{p}"))
    source, own = {"a.x": torch.ones(2), "h.x": torch.ones(3)}, {"backbone.x": torch.zeros(2), "head.x": torch.zeros(4)}
    filled, report = rules.load(source, own, may_miss={"head.": "another head"})
    assert list(filled) == ["backbone.x"]
    assert report.of("new") == (Entry("new", "head.x", (), "another head"),)
    assert report.dropped == (Entry("dropped", "h.x", ("h.x",), "another head"),)
    with pytest.raises(ModelFileError, match=r"h.x \(3,\) does not suit head.x"):
        rules.load(source, own)


def test_what_differs_is_adapted_or_refused_with_the_reason():
    rules, own = Rules(("a", "x"), ("b", "y")), {"x": torch.zeros(2), "y": torch.zeros(2)}
    source = {"a": torch.ones(3), "b": torch.ones(2)}
    filled, report = rules.load(
        source, own, adapt=lambda name, tensor: (tensor[:2], "cut") if len(tensor) > 2 else (tensor, "")
    )
    assert [(entry.fate, entry.note) for entry in report.entries] == [("resized", "cut"), ("matched", "")]
    assert filled["x"].shape == (2,)

    def refuse(name, tensor):
        raise ValueError("it was not allowed")

    with pytest.raises(ModelFileError, match=r"a \(3,\) does not suit x of shape \(2,\): it was not allowed"):
        rules.load(source, own, adapt=refuse)
    with pytest.raises(ModelFileError, match=r"a \(3,\) does not suit x of shape \(2,\)"):
        rules.load(source, own, adapt=lambda name, tensor: (tensor, ""))


PARTED = Rules(
    ("look.{b}.in_proj_{p}", ("blocks.{b}.q.{p}", "blocks.{b}.kv.{p}"), join_shares(1, 2)),
    ("norm.{p}", "norm.{p}"),
)


def test_one_tensor_parts_into_several_and_back():
    source = {
        "look.0.in_proj_weight": torch.randn(6, 2),
        "look.0.in_proj_bias": torch.randn(6),
        "norm.bias": torch.ones(2),
    }
    shapes = {"q.weight": (2, 2), "q.bias": (2,), "kv.weight": (4, 2), "kv.bias": (4,)}
    own = {"norm.bias": torch.zeros(2), **{f"blocks.0.{name}": torch.zeros(shape) for name, shape in shapes.items()}}
    filled, report = PARTED.load(source, own)
    assert {entry.name: entry.sources for entry in report.of("converted")} == {
        f"blocks.0.{name}": (f"look.0.in_proj_{name.partition('.')[2]}",) for name in shapes
    }
    assert torch.equal(
        torch.cat([filled["blocks.0.q.weight"], filled["blocks.0.kv.weight"]]), source["look.0.in_proj_weight"]
    )
    written = PARTED.dump(filled)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in source.items())
    assert (
        recognise(
            {"parted": prefix(PARTED, "vit.", "backbone.")},
            {f"vit.{n}": t for n, t in source.items()},
            {f"backbone.{n}": t for n, t in own.items()},
        )
        == "parted"
    )
    del own["blocks.0.kv.bias"], filled["blocks.0.kv.bias"]
    with pytest.raises(ModelFileError, match=r"no place: the model has no blocks.0.kv.bias"):
        PARTED.load(source, own)
    with pytest.raises(ModelFileError, match=r"q.bias is a part of look.0.in_proj_bias as is blocks.0.kv.bias"):
        PARTED.dump(filled)


# ------------------------------------------------------------------------------------------------------------------
# cross_family

OF_KIN = Rules(
    ("token", "token"),
    (("q.{b}", "k.{b}"), "blocks.{b}.look.weight", join),
    ("norm.{p}", "norm.{p}"),
    cross_family=CrossFamily(
        fresh={"time": "there is no time", "later.*": "there is no later"},
        copies={"blocks.{b}.again.{p}": "blocks.{b}.look.{p}"},
        lacks={"token": "there is no token"},
    ),
)


def kin_model(*left_out):
    names = ("token", "time", "later.weight", "blocks.0.look.weight", "blocks.0.again.weight", "norm.weight")
    sizes = {"blocks.0.look.weight": 4, "blocks.0.again.weight": 4}
    return {name: torch.zeros(sizes.get(name, 2)) for name in names if name not in left_out}


def kin_source():
    return {name: torch.randn(2) for name in ("token", "q.0", "k.0", "norm.weight")}


def test_a_kindred_model_may_lack_and_have_beside_and_copy():
    source = kin_source()
    filled, report = OF_KIN.load(source, kin_model())
    assert torch.equal(filled["blocks.0.again.weight"], torch.cat([source["q.0"], source["k.0"]]))
    assert torch.equal(filled["blocks.0.again.weight"], filled["blocks.0.look.weight"])
    assert {entry.name: entry.note for entry in report.of("new")} == {
        "time": "there is no time",
        "later.weight": "there is no later",
    }
    assert {entry.name: entry.note for entry in report.of("joined")} == {
        "blocks.0.look.weight": "",
        "blocks.0.again.weight": "as blocks.{b}.look.{p}",
    }
    assert not report.dropped
    filled, report = OF_KIN.load(source, kin_model("token"))
    assert [(entry.name, entry.note) for entry in report.dropped] == [("token", "there is no token")]
    assert "token" not in filled


def test_a_kindred_model_is_filled_whole_or_not_at_all():
    for spoil in (
        lambda source, own: source.pop("k.0"),
        lambda source, own: source.pop("token"),  # the model has one
        lambda source, own: own.pop("norm.weight"),  # may not be missing
        lambda source, own: own.update(more=torch.zeros(2)),
        lambda source, own: source.update(time=torch.zeros(2)),  # the layout knows none
    ):
        source, own = kin_source(), kin_model()
        spoil(source, own)
        with pytest.raises(ModelFileError, match="do not fit"):
            OF_KIN.load(source, own)
    with pytest.raises(ModelFileError, match="no rule for time"):
        OF_KIN.dump(kin_model())
    deeper = prefix(OF_KIN, "a.", "b.")
    source, own = (
        {front + name: t for name, t in of.items()} for front, of in (("a.", kin_source()), ("b.", kin_model()))
    )
    assert len(deeper.load(source, own)[1].of("new")) == 2
