"""Typed settings of a run: frozen dataclasses. Each field states its range and its meaning once (`schema`).

A recipe is a YAML file with exactly these keys (`recipes/<task>/<name>.yaml`); `--section.key value` goes over it.
Nothing here names a class or an import path, so no file can. This module imports no torch: `--help` must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

from patchform import schema, system
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.schema import Factor, Length, Misfit, Options, Positive, Range, Share, Side

BelowOne = Annotated[float, Range(least=0, below=1)]
PartOf = Annotated[float, Range(above=0, most=1)]
Scale = Annotated[float, Range(above=0, most=100)]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the pictures are and how they are read."""

    path: str | None = None
    """Folder of class folders, of images/ beside masks/, of tar shards, with train/ and val/; or a CSV list."""
    validation: str | None = None
    """Folder or CSV to validate on; default: val/ beside train/, else a share of `path`."""
    validation_share: Annotated[float, Range(above=0, below=1)] = 0.2
    """Share of each class that is held out when no validation set exists."""
    labels: Literal["single", "multi"] = "single"
    """One class an image, or any number of them (CSV)."""
    features: str | None = None
    """Under a frozen backbone: a folder that keeps what it says of each picture. It then looks at each once, as at
    evaluation, and the head learns from that, without augmentation; null: it looks at every step."""
    workers: Annotated[int, Range(least=0, most=1024)] = 0
    """Processes that decode and augment, for each that trains; results do not depend on it."""
    balanced: bool = False
    """Draw every class equally often."""
    skip_bad: BelowOne = 0.0
    """Highest share of unreadable files that are left out and counted; 0 stops at the first."""
    allow_empty_class: bool = False
    """Accept class folders without a picture."""
    classes: str | Annotated[tuple[str, ...], Length(least=1, most=100_000)] | None = None
    """Names of the classes of masks: a list, or a file; default: classes.txt or classes.json beside them."""
    zero: Literal["class", "ignore"] = "class"
    """Number 0 in masks. class: 0 is the first class; ignore: it is unlabelled and 1 is the first class."""
    ignore: Annotated[int, Range(least=0, most=65_535)] = 255
    """Number in masks of pixels that count for nothing."""
    colors: str | None = None
    """For masks that are pictures of colours: a file with lines of a name and its red, green and blue in 0..255."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What may differ between weights and the model that they go into; anything else stops the load.

    Position tables and relative-bias tables are always resized to the model's image size, and the report says so.
    """

    head: Literal["auto", "load", "reinit"] = "auto"
    """load: every tensor of the head, the classifier by class names where both sides have them; reinit: it
    stays fresh; auto: loaded, but it stays fresh where the source has another head or none, or other classes without
    names."""
    classes: Annotated[tuple[str, ...], Length(most=100_000)] = ()
    """Names of the source's classes in the order of its classifier, where its file does not hold them."""
    channels: Literal["refuse", "repeat", "average", "slice", "new"] = "refuse"
    """First layer for another number of channels. repeat: in turn, scaled by the ratio of the numbers; average: all the
    same, so that a grey picture gives what it gave; slice: the first ones; new: it stays fresh."""
    patch: Literal["refuse", "resample"] = "refuse"
    """Patch kernels for another patch size: resample keeps the product with a patch that is resized likewise."""
    frames: Literal["refuse", "central", "average"] = "refuse"
    """Kernels of single frames in a model of clips: in the middle frame of a tubelet, or shared by its frames."""
    prefix: str | None = None
    """Only tensors whose names begin so are meant, without it, such as "teacher.backbone."; null: what programs put in
    front of all names is taken off."""
    grid: tuple[Side, Side] | None = None
    """Rows and columns of the source's (finest) position table where they are not equal."""


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """What LoRA adds to a backbone's products."""

    rank: Annotated[int, Range(least=1, most=65_536)] = 8
    """Width between the two matrices that are added to each product."""
    alpha: Annotated[float, Range(above=0, most=1_000_000)] = 8.0
    """What is added counts alpha / rank times."""
    dropout: BelowOne = 0.0
    """Probability that a number does not reach what is added."""
    products: Annotated[tuple[Literal["qkv", "proj", "mlp", "all"], ...], Length(least=1, most=4)] = ("qkv",)
    """Linear layers that have it. qkv: those of queries, keys and values; proj: behind attention; mlp: of perceptrons;
    all: every one in the backbone's layers."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is trained."""

    backbone: str = "vit/s16"
    """family/size; `patchform models` lists them."""
    head: str = "linear"
    """Name of the head."""
    options: Options = field(default_factory=dict)
    """Arguments of the backbone that override its row. Those of a recipe go when its family is replaced; when another
    variant of the family is named, those that a variant is named for go (patch, width, depth, heads and their like)."""
    head_options: Options = field(default_factory=dict)
    """Arguments of the head. Those of a recipe go when its head is replaced."""
    drop_path: BelowOne | None = None
    """Highest rate of stochastic depth; null: the row's."""
    init_from: str | None = None
    """Weights to start from (train --from): a run folder, a file in a published layout, or published weights by name,
    each of the backbone that it says, or fits."""
    transfer: Transfer = field(default_factory=Transfer)
    """What may differ between those weights and this model."""
    frozen: Annotated[int, Range(least=0, most=10_000)] | Literal["all"] = 0
    """Layers of the backbone, from the input on, that stay as they are; all: the whole backbone."""
    frozen_epochs: Annotated[int, Range(least=0, most=1_000_000)] = 0
    """Epochs after which they learn as well; 0: never."""
    adapter: Literal["none", "lora"] = "none"
    """lora: the backbone stays as it is, and small additions to its linear layers learn beside the head; what is saved
    has them added in. Layers that are frozen have none."""
    lora: LoRASettings = field(default_factory=LoRASettings)
    """What lora adds."""
    norms: Literal["learn", "frozen", "synchronised"] = "learn"
    """Batch normalisation. frozen: that of the backbone keeps the statistics, scales and shifts that it starts from;
    synchronised: of several processes, by the statistics of all."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the model."""


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes of the training pictures; each draw depends on (seed, epoch, index) only."""

    crop_scale: tuple[PartOf, PartOf] = (0.08, 1.0)
    """Area share of the random resized crop; [1, 1] takes the evaluation crop."""
    crop_ratio: tuple[Scale, Scale] = (0.75, 1.3333)
    """Aspect ratios (width / height) of the random crop."""
    scale: tuple[Scale, Scale] = (0.5, 2.0)
    """With masks and objects: range of the random scale before the random crop of preprocessing.size, which keeps the
    aspect. Objects, too, may see the whole picture: with [1, 1], with sizes, or with preprocessing.resize squash or
    native."""
    sizes: Annotated[tuple[Side, ...], Length()] = ()
    """With objects: the whole picture, its shorter side one of these, drawn anew each time; instead of scale."""
    mosaic: Share = 0.0
    """With objects: probability that four pictures are put together to one."""
    copy_paste: Share = 0.0
    """With masks of objects: probability that objects of another picture are pasted in."""
    crop_padding: Annotated[int, Range(least=0, most=16_384)] = 0
    """If above 0: pad by so many pixels and crop at random (small pictures) instead of crop_scale."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = 0.0
    """Probability of a vertical flip."""
    policy: Literal["none", "rand_augment", "trivial_augment"] = "none"
    """Automatic augmentation policy."""
    magnitude: Annotated[int, Range(least=0, most=30)] = 9
    """Strength of rand_augment."""
    operations: Annotated[int, Range(least=0, most=100)] = 2
    """Operations an image of rand_augment."""
    color_jitter: Share = 0.0
    """Strength of brightness, contrast and saturation jitter; with masks and objects of hue too, where 0.5 is usual,
    and with views."""
    erasing: Share = 0.0
    """Probability of random erasing."""
    mixup: Factor = 0.0
    """Alpha of mixup; 0 turns it off."""
    cutmix: Factor = 0.0
    """Alpha of cutmix; 0 turns it off."""
    mix_token: Factor = 0.0
    """Alpha of MixToken: images exchange a box of cells behind the embedding, and labels are shared by area; 0 turns it
    off."""
    mix_probability: Share = 1.0
    """Share of batches that are mixed."""
    views: Annotated[int, Range(least=1, most=100)] = 1
    """Crops of a picture that are learnt from together, each changed by itself: dino takes 2."""
    local_views: Annotated[int, Range(least=0, most=100)] = 0
    """Small crops beside them."""
    local_size: Side = 96
    """Side of the small crops, pixels."""
    local_scale: tuple[PartOf, PartOf] = (0.05, 0.4)
    """Area share of the small crops."""
    grey: Share = 0.0
    """With views: probability that a crop is grey."""
    blur: Annotated[tuple[Share, ...], Length(most=101)] = ()
    """With views: probability of a blur, one number a crop, and one more for the small ones."""
    solarise: Annotated[tuple[Share, ...], Length(most=101)] = ()
    """With views: probability that bright pixels are inverted, numbers likewise."""
    name: str | None = None
    """A change of your own, behind all others, of pixels alone: masks and boxes stay where they are (own-parts.md)."""
    options: Options = field(default_factory=dict)
    """Arguments of it."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A trained model that is learnt from. It sees what the student sees, and stays as it is."""

    model: str | None = None
    """Run folder, or published weights by name; null: none."""
    kind: Literal["logits", "labels", "tokens", "features", "token_labels"] = "logits"
    """What is learnt of it. logits: its probabilities of the classes, which are matched by name; labels: its best
    class; tokens: the directions of its tokens, through a linear layer; features: its tokens themselves, whitened,
    through one; token_labels: the classes of its tokens, by the head token_label."""
    weight: Factor = 1.0
    """Of that loss; token_labels are weighed by the head's auxiliary_weight."""
    own: Factor = 1.0
    """Of all losses of the head, or of the method of pretraining; 0: the teacher alone is learnt from."""
    temperature: Annotated[float, Range(above=0, most=1000)] = 1.0
    """Of logits: divides those of both; of token_labels: those of the teacher."""
    image: Share = 0.0
    """Of token_labels: share of an image's own target that is the teacher's, the mean over its tokens."""
    size: tuple[Side, Side] | None = None
    """Height and width that it sees the pictures at; null: its own, and that of the student where pictures of several
    sizes are learnt from."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How wrong is measured."""

    of_heads: ClassVar = ("smoothing", "class_weights", "pixel_stride")
    """What a loss of one's own does not read."""
    name: str | None = None
    """A loss of your own, in place of the head's (own-parts.md)."""
    options: Options = field(default_factory=dict)
    """Arguments of it."""
    smoothing: BelowOne = 0.0
    """Label smoothing."""
    class_weights: Literal["none", "root", "balanced"] | list[Positive] = "none"
    """Weight of each class: balanced = inverse of its frequency, root = the square root of that, or one number a class
    in the order of the names."""
    pixel_stride: Side = 1
    """With masks: in training every so-manyth row and column of pixels counts, beginning anywhere at each step: the
    same loss from fewer pixels, in less time."""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """A trained model that is learnt from."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How parameters move."""

    name: Literal["adamw", "lamb", "sgd"] | str = "adamw"
    """Update rule; or one of your own (own-parts.md)."""
    options: Options = field(default_factory=dict)
    """Arguments of one of your own, beside its rate and decay."""
    lr: Annotated[float, Range(above=0, most=1000)] = 1e-3
    """Highest learning rate, for the whole batch as given."""
    weight_decay: Annotated[float, Range(least=0, most=1000)] = 0.05
    """Decoupled, for sgd part of the gradient; not on norms, biases, positions and tokens."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Averaging constants of adamw and lamb."""
    momentum: BelowOne = 0.9
    """Of sgd."""
    eps: Annotated[float, Range(above=0, most=1)] = 1e-8
    """Of adamw and lamb."""
    layer_decay: PartOf = 1.0
    """Learning rate is multiplied by this for each layer further from the head."""
    backbone_rate: Annotated[float, Range(least=0, most=1000)] = 1.0
    """Learning rate of the whole backbone is multiplied by this; 0 is model.frozen all."""
    clip: Factor = 0.0
    """Highest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate moves over the run."""

    name: Literal["cosine", "polynomial", "steps", "constant"] | str = "cosine"
    """Shape after the warm-up; or one of your own (own-parts.md)."""
    options: Options = field(default_factory=dict)
    """Arguments of one of your own."""
    warmup_epochs: Factor = 5.0
    """Linear rise from lr * warmup_start to lr."""
    warmup_start: Share = 1e-3
    """Share of lr at step 0."""
    floor: Share = 0.0
    """Share of lr at the last step, of cosine and polynomial."""
    power: Annotated[float, Range(least=0, most=100)] = 0.9
    """Of polynomial."""
    milestones: Annotated[tuple[Positive, ...], Length()] = ()
    """Of steps: epochs after each of which the rate is multiplied by gamma; those beyond the run never come."""
    gamma: PartOf = 0.1
    """Of steps."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The run itself."""

    epochs: Annotated[int, Range(least=1, most=1_000_000)] = 100
    """Passes over the training set."""
    batch_size: Annotated[int, Range(least=1, most=1_000_000)] = 64
    """Images of one optimizer step, of all processes together."""
    micro_batch: Annotated[int, Range(least=0, most=1_000_000)] = 0
    """Images that go through the model at once; 0: the whole batch, or a process's share. Gradients are the same, but
    for batch normalisation, of which the run then speaks (model.norms)."""
    pixels_at_once: Annotated[int, Range(least=0, most=2**40)] = 0
    """Pixels, padding included, that go through the model at once; 0: no bound. A large picture alone may exceed it.
    Parts then have no more padding than their own pictures need: gradients are the same but for what a model makes of
    padding."""
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] = 0
    """Of weights, order, augmentation and dropout."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the forward and backward pass; parameters stay float32. auto: what the machine is fast in, bfloat16 where it
    has units for it, else float16 on GPUs, else float32; a run keeps what it began with. float16 scales the loss, and
    skips steps whose gradient is beyond its range."""
    ema: BelowOne = 0.0
    """Decay of the moving average of the weights, which is what is evaluated and saved; 0 keeps none. After t steps it
    is at most (1 + t) / (10 + t), so that short runs do not end with what they began as."""
    validate_every: Annotated[int, Range(least=1, most=1_000_000)] = 1
    """Epochs between validations."""
    save_every: Annotated[int, Range(least=0, most=2**40)] = 0
    """Steps between checkpoints; 0: at the end of each epoch."""
    keep: Annotated[int, Range(least=1, most=1_000_000)] = 2
    """Good checkpoints that stay on disk (the best one beside)."""
    patience: Annotated[int, Range(least=0, most=1_000_000)] = 0
    """Stop after so many validations without a better score; 0 never."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What a disk that is full, or cannot be written, does to the run; `continue` says what was not saved or logged."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs."""
    threads: Annotated[int, Range(least=0, most=1024)] = 0
    """CPU threads; 0: torch's default."""
    loggers: Annotated[tuple[str, ...], Length(most=10)] = ("tensorboard",)
    """What takes the numbers beside metrics.csv: tensorboard, wandb, mlflow (each an extra of its name but the first),
    or those of a plug-in. At the end of a run they get its page and eight of the pictures that it validates on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run."""

    task: str = "classification"
    """What is learnt: classification, detection, ..., or a task of a plug-in."""
    name: str | None = None
    """Run folder below `runs`; default: task, backbone and a number."""
    runs: str = "runs"
    """Folder of run folders."""
    data: DataSettings = field(default_factory=DataSettings)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    model: ModelSettings = field(default_factory=ModelSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


class Origin(NamedTuple):
    """Where a recipe came from, for people."""

    name: str
    """Packaged name, or file."""
    notes: tuple[str, ...] = ()
    """A sentence on each thing that became otherwise than the recipe alone has it."""


UNKNOWN = Origin("settings given in Python")


def check(recipe: Recipe) -> None:
    """Raise UsageError for a setting of another type or out of its range, whatever the task."""
    try:
        schema.check(recipe)
    except Misfit as misfit:
        raise UsageError(misfit.what, remedy=misfit.remedy) from None
    change, name = recipe.augmentation, recipe.name
    for key in ("crop_scale", "crop_ratio", "scale", "local_scale"):
        low, high = getattr(change, key)
        if low > high:
            raise UsageError(f"augmentation.{key} is {[low, high]}", remedy="it must be in order, the lower one first")
    if recipe.schedule.name == "steps" and not recipe.schedule.milestones:
        raise UsageError("schedule.milestones is []", remedy="it must be one number of epochs or more")
    _check_teacher(recipe.loss.teacher, mixed=change.mix_token > 0)
    if change.mix_token > 0:
        _check_mix_token(recipe)
    _check_adapter(recipe)
    if name is not None and (
        not name or name in (".", "..") or set(name) & set("/\\\0") or not system.is_file_name(name)
    ):
        raise UsageError(f"name is {name!r}", remedy="it must be the name of a folder, without a path")


def _check_adapter(recipe: Recipe) -> None:
    """Raise UsageError for settings of an adapter that do not go together."""
    model = recipe.model
    if model.adapter == "none" and model.lora != LoRASettings():
        remedy = "set model.adapter lora, or leave out model.lora"
        raise UsageError("model.lora is set and model.adapter is none", remedy=remedy)
    if model.adapter != "none":
        beside = {
            "model.frozen": (model.frozen, model.frozen != "all", "a number of layers, which then have no adapter"),
            "model.frozen_epochs": (model.frozen_epochs, not model.frozen_epochs, "0: what is adapted stays as it is"),
            "optimizer.backbone_rate": (0, recipe.optimizer.backbone_rate > 0, "above 0: it is that of the adapter"),
        }
        for key, (value, holds, what) in beside.items():
            if not holds:
                raise UsageError(f"{key} is {value} under model.adapter {model.adapter}", remedy=f"it must be {what}")


def _check_teacher(teacher: TeacherSettings, *, mixed: bool) -> None:
    """Raise UsageError for settings of a teacher that do not go together."""
    kind, whole = teacher.kind, teacher.kind in ("logits", "labels")
    for holds, what, remedy in (
        (
            teacher.temperature == 1 or kind in ("logits", "token_labels"),
            f"loss.teacher.temperature is {teacher.temperature}, and {kind} have none",
            "leave it at 1",
        ),
        (
            kind != "token_labels" or (teacher.weight, teacher.own) == (1, 1),
            "loss.teacher.weight and loss.teacher.own are not of token_labels",
            "leave them at 1, and set model.head_options.auxiliary_weight",
        ),
        (kind == "token_labels" or not teacher.image, "loss.teacher.image is of token_labels", "leave it at 0"),
        (teacher.weight or teacher.own, "loss.teacher.weight and loss.teacher.own are 0", "nothing is left to learn"),
        (
            not (teacher.model and whole and mixed),
            f"augmentation.mix_token, and {kind} of a teacher, who sees whole pictures",
            "set augmentation.mix_token to 0, or loss.teacher.kind to token_labels",
        ),
    ):
        if not holds:
            raise UsageError(what, remedy=remedy)


def _check_mix_token(recipe: Recipe) -> None:
    """Raise UsageError for settings that tokens cannot be mixed with."""
    for holds, what, remedy in (
        (not recipe.preprocessing.frames, "clips", "set augmentation.mix_token to 0"),
        (
            recipe.preprocessing.resize in ("crop", "squash"),
            "pictures of several sizes",
            "set preprocessing.resize crop",
        ),
        (recipe.training.micro_batch % 2 == 0, "an odd training.micro_batch", "make it even: images go in pairs"),
        (not recipe.training.pixels_at_once, "training.pixels_at_once", "set training.micro_batch instead"),
        (not recipe.model.compile, "model.compile", "set it to false"),
    ):
        if not holds:
            raise UsageError(f"augmentation.mix_token does not go with {what}", remedy=remedy)
