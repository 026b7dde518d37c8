"""Layouts of towers that came after ViT: from the names and shapes of the reference to its tokens and its summary at
several sizes, and back to its bytes."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from reference import randomise, rounding_of
from test_layouts_vit import Output, in_files, renamed, same_bytes
from torch import Tensor, nn

import patchform as pf
from patchform import lookup
from patchform.errors import ModelFileError
from patchform.layers.positions import Rope2D
from patchform.loading import export_weights


class Case(NamedTuple):
    """A layout, the reference that has it, and our backbone of the same size."""

    layout: str
    make: Callable[[], nn.Module]
    of: Callable[[nn.Module, Tensor], Tensor]
    """(reference, images) -> (B, 1 + N, D) summary and tokens, or (B, D) summary."""
    options: Mapping[str, Any] = {}
    """Of the family's nano row."""
    state: Callable[[nn.Module], dict[str, Tensor]] = nn.Module.state_dict
    dropped: str = "nothing"
    """Expression for the names that are left out."""
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (48, 24), (16, 56))


def pictures(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def source_of(case):
    """(reference with random values, its tensors by the names of the layout)."""
    model = randomise(case.make().eval())
    return model, {name: tensor.clone() for name, tensor in case.state(model).items()}


def ours(family, case, **options):
    backbone = f"{family}/nano"
    return randomise(
        pf.build_model(
            "classification",
            backbone=backbone,
            head="linear",
            classes=("a", "b"),
            backbone_options={**case.options, **options},
        ),
        seed=9,
    ).eval()


@torch.no_grad()
def excess(model, case, reference):
    """Largest difference over ten times the rounding of the reference, over all sizes."""
    worst = 0.0
    for images in map(pictures, case.sizes):
        whole = Output(reference, case.of)
        wanted, features = whole(images), model.backbone(images)
        found = features.summary
        if wanted.dim() == 3:
            found = torch.cat([found[:, None], features.tokens], 1)
        assert found.shape == wanted.shape
        worst = max(worst, ((found - wanted).abs().max() / (10 * rounding_of(whole, images))).item())
    return worst


# -------------------------------------------------------------------------------------------------------------- DINOv3


def timm_tower(name, **options):
    timm = pytest.importorskip("timm")
    size = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "img_size": 32}
    return timm.create_model(name, **size | options)


def hugging(kind, config, **options):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    return getattr(transformers, kind)(getattr(transformers, config)(**size | options))


def behind(number):
    """All tokens but `number` behind the first, of either reference."""

    def tokens(model, images):
        x = model.forward_features(images) if hasattr(model, "forward_features") else model(images).last_hidden_state
        return torch.cat([x[:, :1], x[:, 1 + number :]], 1)

    return tokens


def as_dinov3(model):
    """Of timm's names the authors', with what their files hold beside it."""
    own = renamed(model.state_dict(), [(r"gamma_(\d)", r"ls\1.gamma"), ("reg_token", "storage_tokens")])
    if any("fc1_g" in name for name in own):
        own = renamed(own, [("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3")])
    for front in [name.removesuffix("q_bias") for name in own if name.endswith("q_bias")]:
        query, value = own.pop(f"{front}q_bias"), own.pop(f"{front}v_bias")
        one, none = torch.ones_like(query), torch.zeros_like(query)
        own[f"{front}qkv.bias"] = torch.cat([query, none, value])
        own[f"{front}qkv.bias_mask"] = torch.cat([one, none, one])
    own["rope_embed.periods"] = (100 ** (torch.arange(4) / 4)).bfloat16()
    return own | {"mask_token": torch.ones(1, 48), "local_cls_norm.weight": torch.ones(48)}


def dinov3(layout, name, state=nn.Module.state_dict, **options):
    gated, biased = "plus" in name, "qkvb" in name
    own = {"mlp": "swiglu", "mlp_ratio": 6.0} if gated else {"mlp": "gelu"}
    return Case(
        layout,
        lambda: timm_tower(name),
        behind(4),
        own if biased else own | {"qkv_bias": False},
        state,
        "mask_token|rope_embed.periods|local_cls_norm.weight",
    )


def means_of_dinov3(summary):
    """What timm's classifier reads where nothing else is asked for, or the class token beside it."""

    def read(model, images):
        tokens = model.forward_features(images)
        mean = model.forward_head(tokens, pre_logits=True)
        return mean if summary == "mean" else torch.cat([tokens[:, 0], mean], 1)

    name = "vit_small_patch16_dinov3_qkvb"
    return Case("timm", lambda: timm_tower(name), read, {"mlp": "gelu", "summary": summary})


def dinov3_transformers(layout, state, *, gated, registers):
    options = {"use_gated_mlp": gated, "num_register_tokens": registers, "hidden_act": "silu" if gated else "gelu"}
    return Case(
        layout,
        lambda: hugging("DINOv3ViTModel", "DINOv3ViTConfig", intermediate_size=128 if gated else 192, **options),
        behind(registers),
        {"mlp": "swiglu" if gated else "gelu", "registers": registers},
        state,
        "embeddings.mask_token",
    )


DINOV3 = (
    dinov3("dinov3", "vit_small_patch16_dinov3_qkvb", as_dinov3),
    dinov3("dinov3_swiglu", "vit_small_plus_patch16_dinov3_qkvb", as_dinov3),
    dinov3("timm", "vit_small_patch16_dinov3_qkvb"),
    dinov3("timm", "vit_small_patch16_dinov3"),
    dinov3("timm_swiglu", "vit_small_plus_patch16_dinov3"),
    means_of_dinov3("mean"),
    means_of_dinov3("class_and_mean"),
    dinov3_transformers("transformers", in_files, gated=False, registers=4),
    dinov3_transformers("transformers_swiglu", in_files, gated=True, registers=2),
    dinov3_transformers("transformers_5", nn.Module.state_dict, gated=False, registers=4),
    dinov3_transformers("transformers_5_swiglu", nn.Module.state_dict, gated=True, registers=4),
)

# ------------------------------------------------------------------------------------------------------ CLIP and SigLIP

INNER = {"intermediate_size": 192}
TEXTS = {**INNER, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 9,
         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
PICTURES = {**INNER, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
            "patch_size": 8, "projection_dim": 20}  # fmt: skip
NATIVE, PROJECTED = ((32, 32),), {"projection": 20}


def whole(family, **options):
    """A model of both towers."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(text_config=TEXTS, vision_config=PICTURES, **options)
    return getattr(transformers, f"{family}Model")(config)


def whole_clip():
    return whole("CLIP", projection_dim=20)


def tower(model):
    return getattr(model, "vision_model", model)


def of_clip(model, images):
    """The class token and, normed, the others."""
    out = tower(model)(images, interpolate_pos_encoding=True)
    tokens = tower(model).post_layernorm(out.last_hidden_state[:, 1:])
    return torch.cat([out.pooler_output[:, None], tokens], 1)


def projected(model, images):
    return model.visual_projection(of_clip(model, images))


def as_openai(model):
    """Of timm's names OpenAI's."""
    pairs = (
        (r"^blocks\.", "transformer.resblocks."), ("norm_pre", "ln_pre"), (r"^norm\.", "ln_post."), (r"\.norm", ".ln_"),
        (r"qkv\.", "in_proj_"), (r"attn\.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ("patch_embed.proj", "conv1"), ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding"),
        ("^", "visual."),
    )  # fmt: skip
    own = renamed(model.state_dict(), pairs)
    own["visual.class_embedding"] = own["visual.class_embedding"].flatten()
    own["visual.positional_embedding"] = own["visual.positional_embedding"][0]
    if "visual.head.weight" in own:
        own["visual.proj"] = own.pop("visual.head.weight").t().contiguous()
        own.pop("visual.head.bias").zero_()
    return own | {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(4)}


def all_projected(model, images):
    return model.head(model.forward_features(images))


def clip_of_timm(name="vit_base_patch16_clip_quickgelu_224", classes=0):
    return timm_tower(name, num_classes=classes)


BESIDE = "logit_scale|logit_bias|transformer.*|text.*"
CLIP = (
    Case("openai", clip_of_timm, behind(0), {}, as_openai, BESIDE, NATIVE),
    Case("openai", lambda: clip_of_timm(classes=20), behind(0), {}, as_openai, f"{BESIDE}|visual.proj", NATIVE),
    Case("openai_projection", lambda: clip_of_timm(classes=20), all_projected, PROJECTED, as_openai, BESIDE, NATIVE),
    Case("timm", clip_of_timm, behind(0), sizes=NATIVE),
    Case("timm", lambda: clip_of_timm("vit_base_patch16_clip_224"), behind(0), {"gelu": "none"}, sizes=NATIVE),
    Case("transformers", whole_clip, of_clip, {}, in_files, "text.*|logit_scale|visual_projection.*"),
    Case("transformers_projection", whole_clip, projected, PROJECTED, dropped="text.*|logit_scale"),
    Case(
        "transformers_projection",
        lambda: hugging("CLIPVisionModelWithProjection", "CLIPVisionConfig", **PICTURES, hidden_act="gelu"),
        projected,
        PROJECTED | {"gelu": "none"},
    ),
    Case(
        "transformers_backbone", lambda: hugging("CLIPVisionModel", "CLIPVisionConfig", **INNER), of_clip, {}, in_files
    ),
)


def pooled(model, images):
    """The summary and the tokens of SigLIP, in timm or in transformers."""
    if hasattr(model, "forward_features"):
        tokens = model.forward_features(images)
        return torch.cat([model.forward_head(tokens, pre_logits=True)[:, None], tokens], 1)
    out = tower(model)(images, interpolate_pos_encoding=True)
    return torch.cat([out.pooler_output[:, None], out.last_hidden_state], 1)


EXACT = {"gelu": "none"}
SIGLIP = (
    Case("timm", lambda: timm_tower("vit_base_patch16_siglip_224"), pooled, EXACT, sizes=NATIVE),
    Case("timm", lambda: timm_tower("vit_base_patch16_siglip_224", act_layer="gelu_tanh"), pooled, sizes=NATIVE),
    Case(
        "timm",
        lambda: timm_tower("vit_base_patch16_siglip_gap_224"),
        pooled,
        EXACT | {"summary": "mean"},
        sizes=NATIVE,
    ),
    Case("transformers", lambda: whole("Siglip"), pooled, {}, in_files, "text_model.*|logit_.*"),
    Case("transformers_backbone", lambda: hugging("SiglipVisionModel", "SiglipVisionConfig", **INNER), pooled),
)

# -------------------------------------------------------------------------------------------------------------- EVA-02


def fc_normed(model, images):
    """The norm of the mean, or the class token where there is none."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def as_eva(model):
    """Of timm's names the authors', with what their files hold beside it."""
    own = renamed(
        model.state_dict(),
        (("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3"), ("mlp.fc1", "mlp.w12"), ("mlp.norm", "mlp.ffn_ln"),
         (r"([qv])_proj\.bias", r"\1_bias")),
    )  # fmt: skip
    beside = ("rope.freqs_cos", "rope.freqs_sin", "blocks.0.attn.rope.freqs_cos", "mask_token", "lm_head.weight")
    return own | {name: torch.ones(16, 16) for name in beside}


def eva02(layout, name, state=nn.Module.state_dict, size=(32, 32), **options):
    packed = {"inner_norm": False} if "tiny" in name else {}
    pool = {"global_pool": "token"} if options.get("summary") == "class" else {}
    return Case(
        layout,
        lambda: timm_tower(name, img_size=size, ref_feat_shape=(4, 4), **pool),
        fc_normed,
        {**packed, **options, "image_size": size},
        state,
        ".*rope.*|mask_token|lm_head.*",
        (size,),
    )


BASE, TINY = "eva02_base_patch14_224", "eva02_tiny_patch14_224"
EVA02 = (
    eva02("timm", BASE),
    eva02("timm", BASE, size=(48, 24)),
    eva02("timm", BASE, size=(40, 40), summary="class"),
    eva02("timm_packed", TINY),
    eva02("eva", BASE, as_eva, size=(24, 40)),
    eva02("eva_packed", TINY, as_eva, size=(64, 32)),
)

# ---------------------------------------------------------------------------------------------------------------- BEiT


def as_unilm(model):
    """timm's names are those of the authors, whose files hold what follows from the sizes besides."""
    return model.state_dict() | {"blocks.0.attn.relative_position_index": torch.ones(17, 17, dtype=torch.int64)}


def beit_transformers(layout, kind, state):
    config = "Data2VecVisionConfig" if "Data2Vec" in kind else "BeitConfig"
    inner = {**INNER, "use_relative_position_bias": True, "layer_norm_eps": 1e-6, "image_size": 32, "num_labels": 2}

    def of(model, images):
        return getattr(model, "beit", getattr(model, "data2vec_vision", model))(images).pooler_output

    return Case(layout, lambda: hugging(kind, config, **inner), of, {}, state, ".*mask_token")


V2 = "beitv2_base_patch16_224"
BEIT = (
    Case("beit", lambda: timm_tower(V2), fc_normed, {}, as_unilm, ".*relative_position_index", NATIVE),
    Case("beit", lambda: timm_tower(V2, img_size=(48, 24)), fc_normed, {"image_size": (48, 24)}, sizes=((48, 24),)),
    Case("beit", lambda: timm_tower(V2, global_pool="token"), behind(0), {"summary": "class"}, sizes=NATIVE),
    beit_transformers("transformers", "BeitForImageClassification", in_files),
    beit_transformers("transformers_backbone", "BeitModel", in_files),
    beit_transformers("transformers_data2vec", "Data2VecVisionForImageClassification", in_files),
    beit_transformers("transformers_5", "BeitForImageClassification", nn.Module.state_dict),
    beit_transformers("transformers_5_backbone", "BeitModel", nn.Module.state_dict),
)

CASES = {"dinov3": DINOV3, "clip": CLIP, "siglip": SIGLIP, "eva02": EVA02, "beit": BEIT}
ALL = [
    pytest.param(family, case, id=f"{family}-{number}-{case.layout}")
    for family, cases in CASES.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("family", "case"), ALL)
def test_recognised_equal_and_written_back(family, case):
    reference, source = source_of(case)
    model = ours(family, case)
    report = pf.load_weights(model, source)
    assert report.layout == case.layout
    dropped = {entry.name for entry in report.dropped}
    assert dropped == {name for name in source if re.fullmatch(case.dropped, name)}
    assert excess(model, case, reference) <= 1
    written = export_weights(model, case.layout)
    kept = {name: tensor for name, tensor in source.items() if name not in dropped}
    assert written.keys() >= kept.keys()
    assert len(written) - len(kept) == len(report.of("new"))  # a classifier that the source has not
    assert [name for name in kept if not same_bytes(written[name], kept[name])] == []


@pytest.mark.parametrize("family", CASES)
def test_control_swapped_tensors_are_seen(family):
    case = CASES[family][0]
    reference, source = source_of(case)
    one, other = (next(name for name in source if re.search(rf"1\..*(norm_?|ln_){n}\.weight", name)) for n in "12")
    source[one], source[other] = source[other], source[one]
    model = ours(family, case)
    pf.load_weights(model, source)
    assert excess(model, case, reference) > 100


def test_every_layout_has_a_case():
    for family, cases in CASES.items():
        named = set(lookup.published(family).layouts) - {"big_vision"}  # see below
        assert {case.layout for case in cases} == named, family


def test_control_other_coordinates_are_seen():
    case = DINOV3[0]
    reference, source = source_of(case)
    model = ours("dinov3", case)
    pf.load_weights(model, source)
    for block in model.backbone.blocks:
        block.attention.position = Rope2D(16)
    assert excess(model, case, reference) > 100


@pytest.mark.parametrize("changed", [{"counted": (6, 6)}, {"base": 100.0}, {"pair_axis": -2}])
def test_control_another_rotation_of_eva_is_seen(changed):
    case = EVA02[0]
    reference, source = source_of(case)
    model = ours("eva02", case)
    pf.load_weights(model, source)
    for block in model.backbone.blocks:
        for name, value in changed.items():
            setattr(block.attention.position, name, value)
    assert excess(model, case, reference) > 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_embed.periods": (30 ** (torch.arange(4) / 4)).bfloat16()}, "rope_embed.periods is not what"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(144)}, "does not hide the keys' part"),
    ],
)
def test_what_a_file_of_dinov3_says_otherwise_is_refused(change, said):
    _, source = source_of(DINOV3[0])
    model = ours("dinov3", DINOV3[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelFileError, match=said):
        pf.load_weights(model, source | change)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_timm_reads_what_is_written_as_big_vision_has_it(tmp_path):
    model = ours("siglip", SIGLIP[1])
    arrays = {name: tensor.numpy() for name, tensor in export_weights(model, "big_vision").items()}
    np.savez(tmp_path / "tower.npz", **{name: array for name, array in arrays.items() if "/head/" not in name})
    reference = SIGLIP[1].make().eval()
    reference.load_pretrained(tmp_path / "tower.npz")
    assert excess(model, SIGLIP[1], reference) <= 1
    again = ours("siglip", SIGLIP[1], depth=2)
    randomise(again, seed=5)
    report = pf.load_weights(again, tmp_path / "tower.npz")
    assert report.layout == "big_vision"
    assert excess(again, SIGLIP[1], reference) <= 1


@pytest.mark.parametrize(("family", "gelu"), [("clip", "none"), ("siglip", "none")])
def test_control_another_gelu_is_seen(family, gelu):
    case = CASES[family][3]
    reference, source = source_of(case)
    model = ours(family, case, gelu=gelu)
    pf.load_weights(model, source)
    assert excess(model, case, reference) > 10


def test_the_classifier_of_transformers_reads_a_mean_and_is_left_out():
    case = SIGLIP[3]
    _, source = source_of(case)
    source |= {"classifier.weight": torch.zeros(2, 48), "classifier.bias": torch.zeros(2)}
    model = ours("siglip", case)
    report = pf.load_weights(model, source)
    assert {"classifier.weight", "classifier.bias"} <= {entry.name for entry in report.dropped}
    assert {entry.name for entry in report.of("new")} == {"head.classifier.weight", "head.classifier.bias"}
    assert model.head.classifier.weight.any()


def test_what_no_name_tells_is_said():
    case = DINOV3[2]
    _, source = source_of(case)
    report = pf.load_weights(ours("dinov3", case), source)
    assert "reads the mean of the patches" in str(report)
    _, source = source_of(CLIP[5])
    assert "tells its GELU" in str(pf.load_weights(ours("clip", CLIP[5]), source))
