"""Whole segmenters: every tensor of a published file finds its place, and the same numbers come out."""

import pytest
import torch
import torch.nn.functional as F
from reference import golden, randomise
from safetensors.torch import load_file, save_file

import patchform as pf
from patchform import cli, lookup
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.records import Preprocessing
from patchform.settings import Transfer

SWIN = {"width": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "window": 4}


def ours(backbone, head, size=128, classes="abc", head_options=None, **options):
    return pf.build_model(
        "semantic_segmentation",
        backbone=backbone,
        head=head,
        classes=list(classes),
        preprocessing=Preprocessing(size=(size, size)),
        backbone_options=options,
        head_options=head_options or {},
    ).eval()


def upernet(**options):
    return ours("swin/t", "upernet", head_options={"channels_inside": 32, "norm_eps": 1e-5}, **SWIN, **options)


@pytest.fixture(scope="module")
def theirs():
    transformers = pytest.importorskip("transformers")
    size = {"embed_dim": 16, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
    swin = transformers.SwinConfig(image_size=128, out_features=[f"stage{n}" for n in range(1, 5)], **size)
    whole = {"num_labels": 3, "hidden_size": 32, "auxiliary_in_channels": 64, "auxiliary_channels": 16}
    config = transformers.UperNetConfig(backbone_config=swin, **whole)
    return randomise(transformers.UperNetForSemanticSegmentation(config).eval())


@pytest.mark.parametrize("kept", ["file", "memory"])
def test_upernet_of_transformers_loads_whole_and_gives_the_same_numbers(theirs, kept, tmp_path):
    if kept == "file":
        theirs.save_pretrained(tmp_path)
        source = load_file(tmp_path / "model.safetensors")
        assert len(source) == len(theirs.state_dict())
    else:
        source = theirs.state_dict()
    model = upernet(windows="zeros")
    report = pf.load_weights(model, tmp_path if kept == "file" else source)
    assert report.layout == ("transformers_upernet" if kept == "file" else "transformers_5_upernet")
    assert not report.of("new")
    assert not report.of("resized")
    assert {entry.name for entry in report.dropped} == {
        f"backbone.swin.layernorm.{part}" for part in ("weight", "bias")
    } & set(source)
    masked = upernet()
    masked.load_state_dict(model.state_dict())
    for side in (224, 256, 320, 384, 512):  # windows divide the maps of 256, 384 and 512
        images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = theirs(images).logits
            rounding = (theirs.double()(images.double()).logits - wanted).abs().max()
            theirs.float()
            logits = model.head(model.backbone(images)).cells.enlarged((side, side))
            other = masked.head(masked.backbone(images)).cells.enlarged((side, side))
        assert (logits - wanted).abs().max() <= 10 * rounding
        assert ((other - wanted).abs().max() > 100 * rounding) == (side not in (256, 384, 512))
        assert rounding < 1e-5 * wanted.abs().max()
    model.head.norms[0].eps = 1.0  # control: the norms of maps count
    with torch.no_grad():
        other = model.head(model.backbone(images)).cells.enlarged((side, side))
    assert (other - wanted).abs().max() > 100 * rounding


def named(model, layout):
    return export_weights(randomise(model), layout)


LAYOUTS = [
    ("swin/t", "upernet", "mmseg_upernet", SWIN),
    ("swin/t", "upernet", "microsoft_upernet", SWIN),
    ("swin/t", "upernet", "transformers_upernet", SWIN),
    ("swin/t", "upernet", "transformers_5_upernet", SWIN),
    ("resnet/nano", "upernet", "mmseg_upernet", {}),
    ("resnet/nano", "semantic_fpn", "mmseg_semantic_fpn", {}),
    ("pvt/nano", "semantic_fpn", "authors_semantic_fpn", {}),
    ("pvt/nano", "semantic_fpn", "mmseg_semantic_fpn", {}),
    ("pvt/nano", "upernet", "authors_upernet", {}),
    ("twins/nano_dense", "upernet", "meituan_dense_upernet", {}),
    ("twins/nano_dense", "semantic_fpn", "mmseg_svt_semantic_fpn", {}),
    ("pvt/nano", "upernet", "mmseg_upernet", {}),
    ("twins/nano_dense", "semantic_fpn", "meituan_dense_semantic_fpn", {}),
    ("twins/nano_dense", "upernet", "mmseg_svt_upernet", {}),
    ("dual_vit/nano", "upernet", "authors_upernet", {"summary": "mean"}),
    ("dual_vit/nano", "semantic_fpn", "authors_semantic_fpn", {"summary": "mean"}),
    ("vit/nano", "setr", "setr_naive", {}),
    ("vit/nano", "setr", "setr_pup", {"patch": 16}),
    ("vit/nano", "setr", "setr_mla", {"maps_from": (1, 2), "summary": "mean"}),
    ("vit/nano", "setr", "mmseg_setr_naive", {}),
    ("vit/nano", "setr", "mmseg_setr_pup", {"patch": 16}),
    ("vit/nano", "setr", "mmseg_setr_mla", {"depth": 4, "maps_from": (1, 2, 3, 4), "summary": "mean"}),
]


def test_the_table_has_every_layout_of_a_segmenter():
    named = {
        (family, layout)
        for family in lookup.names("backbones")
        for layout in lookup.published(family).layouts
        if layout.endswith(("_upernet", "_semantic_fpn")) or "setr_" in layout
    }
    assert {(backbone.partition("/")[0], layout) for backbone, _, layout, _ in LAYOUTS} == named


def of(backbone, head, layout, options, classes="abc"):
    form = {
        "upernet": {"channels_inside": 32, "norm": "layer" if "swin" in backbone else "none"},
        "semantic_fpn": {"channels_inside": 16, "channels_pyramid": 16},
        "setr": {"channels_inside": 16, "decoder": layout.rpartition("_")[2], "auxiliary": (0,)},
    }
    if layout.startswith("mmseg_setr"):
        form["setr"] |= {"form": "openmmlab", "auxiliary_steps": 2 if layout.endswith("pup") else 1}
        form["setr"] |= {"auxiliary": (0, 1, 2, 3)} if layout.endswith("mla") else {}
    return ours(backbone, head, 64, classes, form[head], **options)


@pytest.mark.parametrize(("backbone", "head", "layout", "options"), LAYOUTS)
def test_any_layout_is_written_and_read_to_the_same_bits(backbone, head, layout, options):
    source, target = (of(backbone, head, layout, options) for _ in range(2))
    randomise(source)
    written = export_weights(source, layout)
    if layout.endswith("setr_mla"):
        written["backbone.cls_token"] = torch.zeros(1, 1, 48)
    report = pf.load_weights(target, written, layout=layout)
    assert pf.load_weights(target, written).layout == layout  # it is recognised, too
    unread = {name for name in target.state_dict() if name.startswith("backbone.norm.")}
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor) or name in unread, name
    assert {entry.name for entry in report.of("new")} <= unread
    names = set(written)
    assert {name.split(".")[0] for name in names} <= {"backbone", "neck", "decode_head", "auxiliary_head"}
    assert any(name.startswith("decode_head.") for name in names)
    whole = of(backbone, head, layout, options, classes="xyzw")  # other classes: their rows stay as they were
    report = pf.load_weights(whole, written)
    assert {"fresh" in entry.note for entry in report.of("resized")} == {True}
    assert torch.equal(whole.backbone.state_dict()[(key := next(iter(source.backbone.state_dict())))],
                       source.backbone.state_dict()[key])  # fmt: skip


class Stated:
    """SETR of OpenMMLab, stated anew over a file's tensors: `read` are the names that it took."""

    def __init__(self, tensors, *, heads):
        self.tensors, self.heads, self.read = tensors, heads, set()

    def get(self, name):
        self.read.add(name)
        return self.tensors[name]

    def pair(self, name):
        return self.get(f"{name}.weight"), self.get(f"{name}.bias")

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], *self.pair(name), eps=1e-6)

    def cell_norm(self, name, x):
        return self.norm(name, x.movedim(1, -1)).movedim(-1, 1)

    def conv(self, name, x):
        kernel = self.get(f"{name}.conv.weight")
        moments = (self.get(f"{name}.bn.running_{part}") for part in ("mean", "var"))
        return F.batch_norm(
            F.conv2d(x, kernel, padding=kernel.shape[-1] // 2), *moments, *self.pair(f"{name}.bn")
        ).relu()

    def maps(self, images, depth, *, class_token):
        kernel, bias = self.pair("backbone.patch_embed.projection")
        x = F.conv2d(images, kernel, bias, stride=kernel.shape[-1])
        grid = x.shape[-2:]
        first = self.get("backbone.cls_token").expand(len(images), 1, -1)
        x = torch.cat([first, x.flatten(2).mT], 1) + self.get("backbone.pos_embed")
        x = x if class_token else x[:, 1:]
        for number in range(depth):
            of = f"backbone.layers.{number}"
            joined = self.get(f"{of}.attn.attn.in_proj_weight"), self.get(f"{of}.attn.attn.in_proj_bias")
            q, k, v = (
                F.linear(self.norm(f"{of}.ln1", x), *joined).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            )
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + F.linear(seen, *self.pair(f"{of}.attn.attn.out_proj"))
            inside = F.gelu(F.linear(self.norm(f"{of}.ln2", x), *self.pair(f"{of}.ffn.layers.0.0")))
            x = x + F.linear(inside, *self.pair(f"{of}.ffn.layers.1"))
            yield x[:, -grid.numel() :].mT.unflatten(2, grid)

    def steps(self, name, x, convolutions, times):
        x = self.cell_norm(f"{name}.norm", x)
        for number in range(convolutions):
            x = F.interpolate(self.conv(f"{name}.up_convs.{number}.0", x), scale_factor=times, mode="bilinear")
        return F.conv2d(x, *self.pair(f"{name}.conv_seg"))

    def mla(self, maps):
        total, levels = 0, []
        for number in reversed(range(4)):  # from the deepest, which is the first level
            narrow = self.conv(f"neck.mla.channel_proj.{number}", self.cell_norm(f"neck.norm.{number}", maps[number]))
            total = total + narrow
            levels.append(self.conv(f"neck.mla.feat_extract.{len(levels)}", total))
        grown = []
        for number, level in enumerate(levels):
            x = self.conv(f"decode_head.up_convs.{number}.0", level)
            x = self.conv(f"decode_head.up_convs.{number}.1", x)
            grown.append(F.interpolate(x, scale_factor=4, mode="bilinear"))
        yield F.conv2d(torch.cat(grown, 1), *self.pair("decode_head.conv_seg"))
        for number, level in enumerate(levels):
            yield F.conv2d(level, *self.pair(f"auxiliary_head.{number}.conv_seg"))

    def logits(self, images, layout, auxiliary_steps):
        """Of the pixels: of the decoder and of each auxiliary one."""
        maps = list(self.maps(images, 4, class_token=layout != "mmseg_setr_mla"))
        if layout == "mmseg_setr_mla":
            logits = list(self.mla(maps))
        else:
            main = (4, 2) if layout == "mmseg_setr_pup" else (1, 4)
            logits = [self.steps("decode_head", maps[-1], *main)]
            logits += [self.steps(f"auxiliary_head.{n}", maps[n], auxiliary_steps, 4) for n in range(3)]
        return [F.interpolate(x, size=images.shape[-2:], mode="bilinear") for x in logits]


def one_step(head):
    head.by_quarter = False


def aligned(head):
    head.decoder.aligned = True


def turned(head):
    head.aggregation.outputs = head.aggregation.outputs[::-1]


def exchanged(head):
    head.decoder.steps[1], head.decoder.steps[2] = head.decoder.steps[2], head.decoder.steps[1]


CONTROLS = {"mmseg_setr_naive": (one_step,), "mmseg_setr_pup": (exchanged,), "mmseg_setr_mla": (aligned, turned)}


@pytest.mark.parametrize(
    ("layout", "steps"),
    [(f"mmseg_setr_{decoder}", steps) for decoder in ("naive", "pup") for steps in (1, 2)] + [("mmseg_setr_mla", 1)],
)
@torch.no_grad()
def test_setr_of_openmmlab_gives_the_numbers_of_its_rules(layout, steps):
    decoder = layout.rpartition("_")[2]
    levels = (0, 1, 2, 3) if decoder == "mla" else (0, 1, 2)
    form = {
        "channels_inside": 16,
        "decoder": decoder,
        "auxiliary": levels,
        "form": "openmmlab",
        "auxiliary_steps": steps,
    }
    size = {"depth": 4, "maps_from": (1, 2, 3, 4), "patch": 16, "summary": "mean" if decoder == "mla" else "class"}
    source, model = (ours("vit/nano", "setr", 64, head_options=form, **size) for _ in range(2))
    draw = torch.Generator().manual_seed(3)
    tensors = {name: tensor.clone() for name, tensor in named(source, layout).items()}
    if decoder == "mla":  # it is given to no block
        tensors["backbone.cls_token"] = torch.randn(1, 1, 48, generator=draw)
        tensors["backbone.pos_embed"][:, 0] = torch.randn(48, generator=draw)
    report = pf.load_weights(model, tensors)
    assert report.layout == layout
    assert {entry.name for entry in report.of("new")} == {"backbone.norm.weight", "backbone.norm.bias"}
    assert any("bilinearly" in remark for remark in report.remarks)
    stated = Stated({name: tensor.double() for name, tensor in tensors.items()}, heads=3)
    images = torch.randn(2, 3, 64, 64, generator=draw, dtype=torch.float64)
    wanted = stated.logits(images, layout, steps)
    assert stated.read == {name for name in tensors if not name.endswith("num_batches_tracked")}
    model.double().head.training = True  # for the auxiliary decoders; norms stay as they are

    def found():
        raw = model.head(model.backbone(images))
        cells = [raw.cells, *(raw.auxiliary[::-1] if decoder == "mla" else raw.auxiliary)]
        return [F.interpolate(one.logits, size=(64, 64), mode="bilinear") for one in cells]

    for logits, numbers in zip(found(), wanted, strict=True):
        assert (logits - numbers).abs().max() < 1e-12 * numbers.abs().max()
    for control in CONTROLS[layout]:
        control(model.head)
        assert (found()[0] - wanted[0]).abs().max() > 1e-3 * wanted[0].abs().max()


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
def test_each_form_of_setr_is_read_and_written_as_its_own_alone(decoder):
    def built(form):
        options = {"decoder": decoder, "channels_inside": 16, "auxiliary": (0, 1, 2, 3), "form": form}
        size = {"depth": 4, "maps_from": (1, 2, 3, 4), "patch": 16, "summary": "mean" if decoder == "mla" else "class"}
        return ours("vit/nano", "setr", 64, head_options=options, **size)

    layouts = {"authors": f"setr_{decoder}", "openmmlab": f"mmseg_setr_{decoder}"}
    for form, other in (("authors", "openmmlab"), ("openmmlab", "authors")):
        tensors = named(built(form), layouts[form])
        with pytest.raises(ModelFileError, match=r"do not fit|of no known layout|does not suit"):
            pf.load_weights(built(other), tensors, transfer=Transfer(head="load"))
        with pytest.raises(ModelFileError, match=r"no rule for head|cannot be written as"):
            named(built(form), layouts[other])


@pytest.mark.parametrize(("name", "head"), [("head_upernet", "upernet"), ("head_semantic_fpn", "semantic_fpn")])
def test_names_are_those_that_openmmlab_trained_by(name, head):
    """The state dict of a head that was run beside its numbers: our names for it are that head's."""
    _, _, state, _ = golden(name)
    form = {"upernet": {"norm": "none"}, "semantic_fpn": {"channels_pyramid": 16}}
    model = ours("resnet/nano", head, head_options={"channels_inside": 16, **form[head]})
    written = {key for key in export_weights(model, f"mmseg_{head}") if not key.startswith("backbone.")}
    assert written == set(state)


def test_a_backbone_or_another_head_takes_what_it_can_of_a_segmenter(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    backbone = pf.build_backbone("swin/t", image_size=128, **SWIN)
    report = pf.load_weights(backbone, tmp_path)
    assert report.layout == "transformers_upernet"
    assert not report.of("new")
    model = upernet()
    pf.load_weights(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), model.backbone.state_dict().values()))
    classifier = pf.build_model(
        "classification", backbone="swin/t", head="linear", classes=["a"], backbone_options=SWIN
    )
    assert {entry.name.split(".")[0] for entry in pf.load_weights(classifier, tmp_path).of("new")} == {"head"}
    with pytest.raises(ModelFileError, match=r"do not fit|no known layout"):
        pf.load_weights(classifier, tmp_path, transfer=Transfer(head="load"))


def test_show_and_convert_know_whole_segmenters(tmp_path, capsys):
    model = ours("resnet/nano", "semantic_fpn")
    save_file(named(model, "mmseg_semantic_fpn"), tmp_path / "a.safetensors")
    (tmp_path / "names").write_text("sky\nroad\ncar\n")
    words = ["--model", "resnet/nano", "--image-size", "128"]
    assert cli.main(["weights", "show", str(tmp_path / "a.safetensors"), *words[:2]]) == 0
    assert "resnet/nano under semantic_fpn, 3 classes" in capsys.readouterr().out
    out = ["--to", "patchform", "--out", str(tmp_path / "own"), "--classes", str(tmp_path / "names")]
    assert cli.main(["weights", "convert", str(tmp_path / "a.safetensors"), *words, *out]) == 0
    loaded = pf.load(tmp_path / "own").model
    assert loaded.classes == ("sky", "road", "car")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
