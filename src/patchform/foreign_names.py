"""What other programs call models and settings, and what that is here: for the lines that refuse a name.

Nothing is read in place of what was typed: names are offered, for the user to choose. Most names of models follow from
rules and from where published files lie; `MODELS`, `ABSENT` and `OPTIONS` are what rules do not say.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

SIZES = {"tiny": ("ti", "t"), "small": ("s",), "base": ("b",), "large": ("l",), "huge": ("h",), "giant": ("g", "g14")}
"""Words for sizes, and what they are in the names of variants."""
USUAL_PATCH = "16"
SHORT = 4
"""Letters that are too few to be the beginning of a name."""
MODELS = (
    (r"vit_?mae_(base|large)", r"vit/\1.mae"),
    (r"dino_?vit_?([sb])(8|16)", r"vit/\g<1>\2.dino"),
    (r"dinov2_(?:with_registers|reg)_(small|base|large|giant)", r"vit/dinov2_reg_\1.lvd142m"),
    (r"dinov2_(small|base|large|giant)", r"vit/dinov2_\1.lvd142m"),
    (r"dinov2_?vit_?([sblg])14_reg4?", r"vit/dinov2_reg_\g<1>14.lvd142m"),
    (r"dinov2_?vit_?([sblg])14", r"vit/dinov2_\g<1>14.lvd142m"),
    (r"dinov3_?vit_?([sb])16(?:_pretrain_lvd1689m)?", r"dinov3/\1.lvd1689m"),
    (r"dinov3_?vit_?l16(?:_pretrain_lvd1689m)?", "dinov3/l.lvd1689m"),
    (r"dinov3_?vit_?s16_?plus(?:_pretrain_lvd1689m)?", "dinov3/s_plus.lvd1689m"),
    (r"dinov3_?vit_?h16_?plus(?:_pretrain_lvd1689m)?", "dinov3/h_plus.lvd1689m"),
    (r"dinov3_?vit_?7b16(?:_pretrain_lvd1689m)?", "dinov3/7b.lvd1689m"),
    (r"clip_vit_(base|large|huge)_patch(\d+)", r"clip/\g<1>\2"),
    (r"swin_?v2_(tiny|small|base|large|[tsbl])(?:_patch4)?", r"swin/v2_\1"),
    (r"swin_?v2_(tiny|small|base|large)_patch4_window(\d+)_\d+", r"swin/v2_\1_w\2"),
    (r"siglip2?_(base|large)_patch(\d+)(?:_\d+)?", r"siglip/\g<1>\2"),
    (r"deit3_(small|base|large|huge|medium)(?:_patch\d+_\d+)?", r"parallel_vit/deit3_\1"),
    (r"deit_(tiny|small|base)", r"vit/\g<1>16"),
    (r"pvt_?v2_(b\d)", r"pvt/v2_\1"),
    (r"pvt_(tiny|small|medium|large)", r"pvt/v1_\1"),
    (r"eva02_(tiny|small|base|large)(?:_patch14)?(?:_224)?", r"eva02/\1"),
    (r"beit(?:v2)?_(base|large)(?:_patch16)?(?:_224)?(?:_pt22k.*)?", r"beit/\1"),
)
"""Patterns of whole names, without owner, in lower case with `_` between words; and our names, sizes still in words.
With a point: of published weights."""
ABSENT = {
    "yolo": "YOLO", "rtdetr": "RT-DETR", "rt_detr": "RT-DETR", "rfdetr": "RF-DETR", "deformable": "Deformable DETR",
    "convnext": "ConvNeXt", "efficientnet": "EfficientNet", "tf_efficientnet": "EfficientNet", "mobilenet": "MobileNet",
    "mobilevit": "MobileViT", "maxvit": "MaxViT", "maxxvit": "MaxViT", "coatnet": "CoAtNet", "regnet": "RegNet",
    "densenet": "DenseNet", "vgg": "VGG", "alexnet": "AlexNet", "inception": "Inception", "resnext": "ResNeXt",
    "wide_resnet": "Wide ResNet", "segformer": "SegFormer", "mit_b": "SegFormer", "mask2former": "Mask2Former",
    "maskformer": "MaskFormer", "cait": "CaiT", "xcit": "XCiT", "levit": "LeViT", "poolformer": "PoolFormer",
    "fastvit": "FastViT", "hiera": "Hiera", "sam": "SAM", "mvit": "MViT", "efficientformer": "EfficientFormer",
    "tiny_vit": "TinyViT", "davit": "DaViT", "focalnet": "FocalNet", "nat": "NAT", "videomae": "VideoMAE",
}  # fmt: skip
"""Beginnings of names of models that people ask for and that are not here, and what they are called."""
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("imgsz", "img", "img_size", "image_size", "input_size", "crop_size"), ("size",)),
    **dict.fromkeys(("b", "bs", "batch_size", "batch"), ("batch", "batch-size")),
    **dict.fromkeys(("lr0", "learning_rate", "base_lr", "blr"), ("lr",)),
    **dict.fromkeys(("max_epochs", "num_epochs", "num_train_epochs"), ("epochs",)),
    **dict.fromkeys(("backbone", "arch", "a", "m", "encoder", "architecture"), ("model",)),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "root", "d", "images", "source"), ("data",)),
    **dict.fromkeys(("weights", "checkpoint", "pretrained", "finetune", "load_from"), ("from", "model.init_from")),
    **dict.fromkeys(("project", "output_dir", "work_dir", "save_dir", "logdir"), ("runs", "out")),
    **dict.fromkeys(("output", "o", "save", "dest"), ("out", "runs")),
    **dict.fromkeys(("run_name", "experiment", "exp_name"), ("name",)),
    **dict.fromkeys(("opt", "optimizer", "optim"), ("optimizer.name",)),
    **dict.fromkeys(("sched", "scheduler", "schedule", "lr_scheduler", "cos_lr"), ("schedule.name",)),
    **dict.fromkeys(("wd", "decay"), ("optimizer.weight_decay",)),
    **dict.fromkeys(("warmup", "warmup_steps", "lr_warmup_epochs"), ("schedule.warmup_epochs",)),
    **dict.fromkeys(("lrf", "min_lr"), ("schedule.floor",)),
    **dict.fromkeys(("num_workers", "j", "loader_workers"), ("workers", "data.workers")),
    **dict.fromkeys(("amp", "half", "fp16", "bf16", "mixed_precision", "dtype"), ("dtype", "training.precision")),
    **dict.fromkeys(("gpus", "gpu", "accelerator"), ("device", "training.device")),
    **dict.fromkeys(("freeze", "freeze_backbone"), ("model.frozen",)),
    **dict.fromkeys(("dropout", "drop_path_rate", "drop"), ("model.drop_path",)),
    **dict.fromkeys(("label_smoothing",), ("loss.smoothing",)),
    **dict.fromkeys(("fliplr", "hflip", "horizontal_flip"), ("augmentation.flip",)),
    **dict.fromkeys(("flipud", "vflip"), ("augmentation.vertical_flip",)),
    **dict.fromkeys(("aa", "auto_augment", "augment", "randaugment"), ("augmentation.policy", "mirrored")),
    **dict.fromkeys(("reprob", "random_erasing"), ("augmentation.erasing",)),
    **dict.fromkeys(("model_ema", "ema_decay", "model_ema_decay"), ("training.ema",)),
    **dict.fromkeys(("accumulate", "grad_accum_steps", "accum_iter"), ("training.micro_batch",)),
    **dict.fromkeys(("clip_grad", "grad_clip", "gradient_clip_val"), ("optimizer.clip",)),
    **dict.fromkeys(("torchcompile",), ("model.compile",)),
    **dict.fromkeys(("grad_checkpointing", "gradient_checkpointing"), ("model.checkpointing",)),
    **dict.fromkeys(("save_period", "checkpoint_interval"), ("training.save_every",)),
    **dict.fromkeys(("val_split", "val_share", "split"), ("data.validation_share",)),
    **dict.fromkeys(("val", "val_dir"), ("data.validation",)),
    **dict.fromkeys(("num_classes", "nc", "classes"), ("data.classes",)),
    **dict.fromkeys(("conf", "confidence", "score_thr", "conf_thres"), ("threshold",)),
    **dict.fromkeys(("save_txt", "to"), ("format", "to")),
    **dict.fromkeys(("tta",), ("mirrored",)),
    **dict.fromkeys(("force", "exist_ok"), ("overwrite", "force")),
}
"""Names of options in other programs, without dashes, `_` between words; and ours: the first that a verb has."""


class Meant(NamedTuple):
    """What a name of another program is here."""

    backbone: str
    weights: str = ""
    """The published file, where the name says which; else ""."""


def absent(name: str) -> str:
    """What a model is called that is not here; "" for any other name."""
    word = _without_owner(name)
    return next((called for beginning, called in ABSENT.items() if word.startswith(beginning)), "")


def backbone(name: str, known: Collection[str], places: Mapping[str, str]) -> Meant | None:
    """The backbone that somebody means.

    Args:
        name: as it was typed, "vit_base_patch16_224" or "facebook/dinov2-small".
        known: names of all backbones, family/size.
        places: where published files are, by family/size.tag.
    """
    if name in known:
        return Meant(name)
    word = _without_owner(name)
    for weights, place in places.items():
        if word in _called_there(place):
            own = weights.partition(".")[0]
            return Meant(own, weights if "." in word else "")
    for pattern, ours in MODELS:
        if match := re.fullmatch(pattern, word):
            own, _, tag = match.expand(ours).partition(".")
            if found := _of_size(own, known):
                weights = f"{found}.{tag}"
                return Meant(found, weights if weights in places else "")
    found = _of_size(word, known)
    return Meant(found) if found else None


def option(name: str, options: Iterable[str]) -> list[str]:
    """Options that somebody means, the likeliest first.

    Args:
        name: as it was typed, with dashes in front or without.
        options: those that there are, without dashes in front: "batch-size", "optimizer.lr".
    """
    there = {one.replace("-", "_"): one for one in options}
    word = name.lstrip("-").replace("-", "_").lower()
    leaf = word.rpartition(".")[2]
    for one in (word, leaf):
        if found := next((there[key] for ours in OPTIONS.get(one, ()) if (key := ours.replace("-", "_")) in there), ""):
            return [found]
        if one in there:
            return [there[one]]
        if same := [there[key] for key in there if "." in key and key.rpartition(".")[2] == one]:
            return same
    if len(word) < 2:
        return []
    leaves = {key.rpartition(".")[2]: own for key, own in reversed(there.items())}
    for candidates in (there, leaves):
        if near := difflib.get_close_matches(word, candidates, n=1, cutoff=0.7):
            return [candidates[near[0]]]
    return []


def _without_owner(name: str) -> str:
    """In lower case with `_` between words, without the owner of "owner/name"; "ViT-B/16" has none."""
    owner, slash, rest = name.lower().removeprefix("hub:").partition("/")
    plain = rest if slash and re.search(r"[a-z]{3}", rest) and not rest.startswith(tuple(SIZES)) else f"{owner}_{rest}"
    return re.sub(r"[-\s/]+", "_", plain).strip("_")


def _called_there(place: str) -> Iterator[str]:
    """What a published file is called where it lies, with the tag and without: "swin_t", "resnet50.tv_in1k"."""
    home, _, rest = place.partition(":")
    if home == "hub":
        repository = rest.split("/")[1]
        yield from (repository.replace("-", "_"), repository.partition(".")[0])
    elif home == "torchvision":
        yield rest.partition("/")[0]


def _of_size(word: str, known: Collection[str]) -> str:
    """The known name that is the same but for dashes, words for sizes, and the size of pictures; "" without any."""
    squeezed = {re.sub(r"[^a-z0-9]", "", name): name for name in reversed(list(known))}
    plain = re.sub(r"_(?:224|240|256|384|448|512)$", "", re.sub(r"patch_?", "", word.lower().replace("/", "_")))
    spelt = [plain]
    for size, letters in SIZES.items():
        spelt = [
            re.sub(rf"{size}(?![a-z])", letter, one) for one in spelt for letter in letters if size in one
        ] or spelt
    keys = [re.sub(r"[^a-z0-9]", "", one) for one in spelt]
    for key in keys:
        for candidate in (key, key + USUAL_PATCH, key + "14"):
            if candidate in squeezed:
                return squeezed[candidate]
    for key in keys:
        longer = [name for other, name in squeezed.items() if other.startswith(key) and "nano" not in name]
        if longer and len(key) > SHORT:
            return min(reversed(longer), key=len)
    return ""
