"""Layouts of ViT and its kin: from the reference's own names and shapes to the same output, and back to the same bytes."""

import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from reference import golden, randomise, rounding_of
from safetensors.torch import load_file
from torch import Tensor, nn

import patchform as pf
from patchform.loading import export_weights
from patchform.settings import Transfer

CLASSES = tuple("0123456789")


class Made(NamedTuple):
    """A reference with random weights."""

    source: dict[str, Tensor]
    images: Tensor
    expected: Tensor
    tolerance: float


def logits(model, images):
    """The output of our model."""
    features = model.backbone(images)
    return model.head.logits(model.head(features)) if hasattr(model.head, "logits") else model.head(features)


def summary(model, images):
    """What a trunk without a classifier tells of a picture."""
    return model.backbone(images).summary


class Case(NamedTuple):
    """A layout, the reference that has it, and our model of the same size."""

    layout: str
    make: Callable[[], Made]
    backbone: str
    options: Mapping[str, Any] = {}
    output: Callable[..., Tensor] = logits
    head: str = "linear"
    head_options: Mapping[str, Any] = {}
    transfer: Transfer | None = None
    dropped: str = "nothing"
    """Expression for the names that are left out."""


# ------------------------------------------------------------------------------------------------------ references


def pictures(*shape):
    return torch.randn(2, *(shape or (3, 32, 32)), generator=torch.Generator().manual_seed(1))


class Output(nn.Module):
    """A reference, and which of its outputs is meant."""

    def __init__(self, model, of):
        super().__init__()
        self.model, self.of = model, of

    def forward(self, images):
        return self.of(self.model, images)


@torch.no_grad()
def live(model, *, state=nn.Module.state_dict, of=nn.Module.__call__, images=None):
    """Random weights for a model, and its output."""
    images = pictures() if images is None else images
    model = randomise(model.eval())
    source = {name: tensor.clone() for name, tensor in state(model).items()}
    reference = Output(model, of)
    return Made(source, images, reference(images), 10 * rounding_of(reference, images))


def renamed(state, pairs):
    for old, new in pairs:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return state


def timm_vit(**options):
    timm = pytest.importorskip("timm")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return timm.models.VisionTransformer(**{**size, **options})


def class_token(model, images):
    return model.forward_features(images)[:, 0]


def mae():
    """The trunk is timm's; the tensors beside it and all names are of the authors' file."""
    parameters = golden("mae")[2]

    def state(model):
        own = model.state_dict()
        beside = {name: tensor for name, tensor in parameters.items() if name not in own}
        assert {name for name in parameters if name in own} == own.keys()
        return own | beside

    return live(timm_vit(embed_dim=24, num_classes=0), state=state, of=class_token)


def dinov2(chunk=0, **options):
    """As timm has it without chunks; its table has rows for the registers, which are part of those tokens."""

    def state(model):
        own = dict(model.state_dict())
        table = own["pos_embed"]
        own["register_tokens"] = own.pop("reg_token") + table[:, 1:3]
        own["pos_embed"] = torch.cat([table[:, :1], table[:, 3:]], 1)
        own["mask_token"] = torch.ones(1, 48)
        chunks = [(f"^blocks.{b}[.]", f"blocks.{b // chunk}.{b}.") for b in range(len(model.blocks)) if chunk]
        return renamed(own, reversed(chunks))

    model = timm_vit(num_classes=0, init_values=0.1, reg_tokens=2, no_embed_class=False, **options)
    return live(model, state=state, of=class_token)


MM = (
    (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"layers.\1.ffn.layers.0.0"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"layers.\1.ffn.layers.1"),
    (r"^blocks\.(\d+)\.ls1\.gamma", r"layers.\1.attn.gamma1.weight"),
    (r"^blocks\.(\d+)\.ls2\.gamma", r"layers.\1.ffn.gamma2.weight"),
    (r"^blocks\.", "layers."),
    (r"^norm\.", "ln1."),
    (r"^patch_embed\.proj", "patch_embed.projection"),
)
MM_WHOLE = ((r"^(?!head)", "backbone."), (r"^head\.", "head.layers.head."))
MMSEG = (*MM, (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj", "attn.attn.out_proj"))


def as_mm(*pairs):
    return lambda model: renamed(model.state_dict(), pairs)


# ----------------------------------------------------------------------------------------------------- transformers

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
VIT = {**SMALL, "intermediate_size": 192, "layer_norm_eps": 1e-6}
REGISTERS = {"num_register_tokens": 2}


def in_files(model):
    """Its tensors by the names that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def hugging(family, kind, config, *, state=in_files, of=None, images=None, **options):
    module = pytest.importorskip(f"transformers.models.{family}")
    model = getattr(module, kind)(getattr(module, config)(**options))
    return live(model, state=state, of=of or (lambda model, images: model(images).logits), images=images)


def first(model, images):
    return model(images).last_hidden_state[:, 0]


def below(name):
    return lambda model, images: first(getattr(model, name), images)


def vit_mae(state):
    def unmasked(model, images):
        return model.vit(images, noise=torch.arange(16).expand(2, -1)).last_hidden_state[:, 0]

    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    size = {**VIT, **decoder, "decoder_intermediate_size": 16, "mask_ratio": 0.0}
    return hugging("vit_mae", "ViTMAEForPreTraining", "ViTMAEConfig", state=state, of=unmasked, **size)


def vit_hybrid():
    """transformers' Bit below its ViT, which sees a map of 256 channels: what its ViTHybrid was."""
    vit, bit = (pytest.importorskip(f"transformers.models.{name}") for name in ("vit", "bit"))
    local = bit.BitBackbone(
        bit.BitConfig(
            embedding_size=32, hidden_sizes=[128, 256], depths=[1, 2], layer_type="bottleneck", global_padding="same",
            embedding_dynamic_padding=True, out_features=["stage2"],
        )
    )  # fmt: skip
    above = vit.ViTForImageClassification(
        vit.ViTConfig(**{**VIT, "image_size": 8, "patch_size": 1}, num_channels=256, num_labels=10)
    )

    def state(model):
        with torch.no_grad():
            for module in model[0].modules():  # constants of the original, as in tests/backbones/test_hybrid.py
                if isinstance(module, nn.GroupNorm):
                    module.eps = 1e-6
                if type(module).__name__ == "WeightStandardizedConv2d":
                    module.weight *= 1e3
        lower = {f"vit.embeddings.patch_embeddings.backbone.{name}": t for name, t in model[0].state_dict().items()}
        return lower | in_files(model[1])

    def both(model, images):
        return model[1](model[0](images).feature_maps[0]).logits

    return live(nn.ModuleList([local, above]), state=state, of=both, images=pictures(3, 64, 64))


# ------------------------------------------------------------------------------------------------- timm and torchvision


def torchvision_vit(**options):
    models = pytest.importorskip("torchvision.models")
    size = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192}
    return live(models.VisionTransformer(**size, num_classes=10, **options))


def resnet(home, block, **options):
    module = pytest.importorskip(f"{home}.models.resnet")
    return live(module.ResNet(getattr(module, block), [1, 2, 1, 1], num_classes=10), **options)


def timm_by_name(name, size=(32, 32), *, state=nn.Module.state_dict, **options):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, img_size=size, num_classes=10, **options)
    return live(model, state=state, images=pictures(3, *size))


def timm_cross_vit(multi_conv):
    timm = pytest.importorskip("timm")
    model = timm.models.crossvit.CrossVit(
        img_size=120, img_scale=(1.0, 112 / 120), patch_size=(12, 16), num_classes=10, embed_dim=(24, 48),
        depth=((1, 2, 0), (1, 3, 0)), num_heads=(3, 3), mlp_ratio=(3, 3, 1), multi_conv=multi_conv,
    )  # fmt: skip
    return live(model, images=pictures(3, 120, 120))


def timm_volo():
    timm = pytest.importorskip("timm")
    model = timm.models.volo.VOLO(
        layers=[2, 1, 2, 1], img_size=64, num_classes=10, stem_hidden_dim=8, embed_dims=[12, 24, 24, 24],
        num_heads=[2, 4, 4, 4],
    )  # fmt: skip
    return live(model, images=pictures(3, 64, 64))


def hybrid_by_name(name, **options):
    """timm's, with the two small constants of the original (tests/backbones/test_hybrid.py)."""
    timm = pytest.importorskip("timm")
    size = {"img_size": 64, "num_classes": 10, "depth": 2, "embed_dim": 48, "num_heads": 3}

    def state(model):
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.GroupNorm):
                    module.eps = 1e-6
                if type(module).__name__ == "StdConv2dSame":
                    module.weight *= 1e3
        return model.state_dict()

    return live(timm.create_model(name, **size, **options), state=state, images=pictures(3, 64, 64))


# ---------------------------------------------------------------------------------------------------- authors' vectors


def vector(name, *, front="", channels_last=False):
    """What the authors' code gave. Where the size of its rounding is not on record, 1e-5 of the largest output."""
    _, tensors, parameters, rounding = golden(name)
    images = tensors["input"].permute(0, 3, 1, 2) if channels_last else tensors["input"]
    tolerance = 10 * rounding["output"] if rounding else 1e-5 * tensors["output"].abs().max().item()
    source = {front + key: tensor for key, tensor in parameters.items()}
    return Made(source, images, tensors["output"], tolerance)
