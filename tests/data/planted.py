"""Small data sets of every format, real ones cut down or generated, and faults to plant in them.

A spoiler changes a set in place and returns a pattern for where the fault is.
"""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
from data import bad_pictures
from data.bad_pictures import class_folders, encode, exif, mask_folders
from PIL import Image

from patchform.commands.data import convert_data

DATA = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = {
    "boxes": "detection/bccd",
    "outlines": "instance_segmentation/five_objects",
    "masks": "semantic_segmentation/camvid",
    "folders": "classification/hymenoptera",
}
PART = {"train": 12, "val": 6}
"""Pictures of each part."""


# --------------------------------------------------------------------------------------------------------------- sets


def generated_coco(root, *, outlines):
    """Noise of 64 x 48 pixels with three objects each."""
    numbers, seed = np.random.default_rng(0), 0
    for part, count in PART.items():
        images, annotations = [], []
        (root / part).mkdir(parents=True)
        for index in range(1, count + 1):
            seed += 1
            name = f"{part}{seed}.jpg"
            pixels = numbers.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            (root / part / name).write_bytes(encode(Image.fromarray(pixels), "JPEG"))
            images.append({"id": index, "file_name": name, "width": 64, "height": 48})
            for number in range(3):
                x, y = 30 + int(numbers.integers(0, 4)), 3 + 15 * number  # to the right, so that x + x2 is outside
                one = {"id": len(annotations) + 1, "image_id": index, "category_id": number + 1, "iscrowd": 0}
                one |= {"bbox": [x, y, 25, 12], "area": 300}
                if outlines:
                    one["segmentation"] = [[x, y, x + 25, y, x + 25, y + 12, x, y + 12]]
                annotations.append(one)
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(("cat", "dog", "hen"))]
        (root / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))


def real_coco(source, root):
    """The first pictures of each part."""
    (root / "annotations").mkdir(parents=True)
    for part, count in PART.items():
        (root / part).mkdir()
        document = json.loads((source / "annotations" / f"instances_{part}.json").read_text())
        taken = sorted(document["images"], key=lambda image: image["file_name"])
        document["images"] = taken = taken[:: len(taken) // count][:count]
        ids = {image["id"] for image in taken}
        document["annotations"] = [one for one in document["annotations"] if one["image_id"] in ids]
        for image in taken:
            shutil.copyfile(source / part / image["file_name"], root / part / image["file_name"])
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))


def generated_masks(root):
    for part, seed in (("training", 0), ("validation", 1)):
        folders = {"pictures": f"images/{part}", "masks": f"annotations/{part}"}
        mask_folders(root, [f"{part}{index}" for index in range(6)], **folders, seed=seed)
    (root / "classes.txt").write_text("sky\nroad\ntree\n")


def real_masks(source, root):
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("*.jpg", "*.png"))
    for picture in sorted((source / "images").rglob("*.*"))[::30]:
        place = picture.relative_to(source / "images")
        for kind, suffix in (("images", picture.suffix), ("annotations", ".png")):
            shutil.copyfile(source / kind / place.with_suffix(suffix), root / kind / place.with_suffix(suffix))
    for folder in (root, *root.rglob("*")):
        folder.chmod(0o755)


def generated_folders(root):
    class_folders(root / "train", {"ants": 6, "bees": 6})
    class_folders(root / "val", {"ants": 3, "bees": 3}, seed=1)


def real_folders(source, root):
    for part, count in PART.items():
        for kind in ("ants", "bees"):
            (root / part / kind).mkdir(parents=True)
            for picture in sorted((source / part / kind).iterdir())[:count]:
                shutil.copyfile(picture, root / part / kind / picture.name)


def make_set(name, root, *, real):
    """A clean set. Raises FileNotFoundError where the real one is not there."""
    if name in ("yolo", "voc", "yolo_outlines"):
        source = root.with_name(f"{root.name}-source")
        make_set("outlines" if "outlines" in name else "boxes", source, real=real)
        convert_data(source, root, to=name.partition("_")[0], pictures="copy")
    elif name == "list":
        make_set("folders", root, real=real)
        for part in ("train", "val"):
            files = sorted((root / part).rglob("*.*"))
            lines = [f"{file.relative_to(root).as_posix()},{file.parent.name}" for file in files]
            (root / f"{part}.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    elif real:
        source = DATA / REAL[name]
        if not source.is_dir():
            raise FileNotFoundError(source)
        {"masks": real_masks, "folders": real_folders}.get(name, real_coco)(source, root)
    elif name in ("boxes", "outlines"):
        generated_coco(root, outlines=name == "outlines")
    else:
        {"masks": generated_masks, "folders": generated_folders}[name](root)
    return root


# ----------------------------------------------------------------------------------------------------------- spoilers


def coco(change, part="train"):
    """A spoiler that changes the document; `change` takes it and returns the place."""

    def spoil(root):
        file = root / "annotations" / f"instances_{part}.json"
        document = json.loads(file.read_text())
        place = change(document)
        file.write_text(json.dumps(document))
        return place

    return spoil


def annotation(key, value, place=None):
    """Set something of the fifth annotation."""

    def change(document):
        one = document["annotations"][4]
        one[key] = value
        return place or _place(document, one)

    return coco(change)


def _place(document, one):
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return f"{names.get(one['image_id'], 'image')}.*, annotation {one['id']}"


def image(key, value):
    def change(document):
        third = document["images"][2]
        third[key] = value(third, document) if callable(value) else value
        return third["file_name"]

    return coco(change)


def category_twice(document):
    document["categories"].append({**document["categories"][0], "id": 99})
    return "categories"


def id_twice(key):
    def change(document):
        document[key][3]["id"] = document[key][2]["id"]
        return _place(document, document[key][3]) if key == "annotations" else document[key][3]["file_name"]

    return coco(change)


def corners(document):
    for one in document["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]
    return "annotation"


def another(change):
    """An annotation more, made from the first one."""

    def more(document):
        first, number = document["annotations"][0], len(document["annotations"])
        ids = [category["id"] for category in document["categories"]]
        other = next(id_ for id_ in ids if id_ != first["category_id"])
        document["annotations"].append({**first, "id": 10_000 + number, **change(first, other)})
        names = {image["id"]: image["file_name"] for image in document["images"]}
        return f"{names[first['image_id']]}, object"

    return coco(more)


def unused(document):
    document["categories"].append({"id": 77, "name": "unicorn"})
    return "unicorn"


def replace(pattern, content, index=1):
    """A spoiler that puts other bytes into a file: `content`, or what it makes of the old ones."""

    def spoil(root):
        file = sorted(root.glob(pattern))[index]
        data = content(file.read_bytes()) if callable(content) else content
        file.write_bytes(data)
        return file.stem

    return spoil


def remove(pattern, index=1):
    def spoil(root):
        file = sorted(root.glob(pattern))[index]
        file.unlink()
        return file.stem

    return spoil


def copy(pattern, place, index=1):
    """A spoiler that copies a file."""

    def spoil(root):
        file = sorted(root.glob(pattern))[index]
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / place)
        return Path(place).name

    return spoil


def turned(data):
    return encode(Image.open(io.BytesIO(data)).convert("RGB"), "JPEG", exif=exif(6))


def mask(change):
    """A spoiler of the second mask; `change` takes and returns an array."""

    def spoil(root):
        file = sorted((root / "annotations" / "training").iterdir())[1]
        file.write_bytes(encode(Image.fromarray(change(np.array(Image.open(file)))), "PNG"))
        return file.stem

    return spoil


def odd_number(array):
    array = array.copy()
    array[:3, :3] = 37
    return array


def lossy_mask(root):
    file = sorted((root / "annotations" / "training").iterdir())[1]
    file.with_suffix(".jpg").write_bytes(encode(Image.open(file).convert("L"), "JPEG"))
    file.unlink()
    return file.stem


def lines(change, pattern="labels/train/*.txt", place=None):
    """A spoiler of the first file with lines in it; `change` takes and returns them."""

    def spoil(root):
        file = next(file for file in sorted(root.glob(pattern)) if file.read_text().strip())
        file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")
        return place or file.stem

    return spoil


def in_pixels(root):
    for file in root.glob("labels/train/*.txt"):
        words = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(" ".join([w[0], *(f"{float(x) * 40:.6g}" for x in w[1:])]) + "\n" for w in words))
    return "line"


def from_one(root):
    for file in root.glob("labels/*/*.txt"):
        words = [line.split(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{int(number) + 1} {rest}\n" for number, rest in words))
    file = root / "data.yaml"
    file.write_text(file.read_text().replace("train:", "  3: more\ntrain:"))
    return ""


def only_validated(root):
    copy("val/ants/*", "val/wasps/a.jpg")(root)
    return "wasps"


def alike(root):
    copy("train/ants/*", "train/Ants /a.jpg")(root)
    return "Ants"


def empty_class(root):
    (root / "train" / "wasps").mkdir()
    return "wasps"


def line_twice(root):
    file = root / "train.csv"
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    return "lines 2 and "


HTML, BOMB = bad_pictures.bad()["page.jpg"][0], bad_pictures.bomb(10_000)
RUNS = {"counts": [5, 20, 7], "size": [4, 8]}

PLANTED = {
    # name: (set, spoiler, kind, part of what is said)
    "empty-file": ("boxes", replace("train/*", b""), "picture-bad", "empty"),
    "half-picture": ("boxes", replace("train/*", lambda data: data[: len(data) // 2]), "picture-bad", "cut short"),
    "web-page": ("boxes", replace("val/*", HTML), "picture-bad", "HTML"),
    "picture-gone": ("boxes", remove("train/*"), "picture-missing", ""),
    "other-size": ("boxes", image("width", lambda image, _: image["width"] + 10), "size-differs", "annotated as"),
    "turned": ("boxes", replace("train/*", turned), "size-turned", "upright"),
    "leads-out": ("boxes", image("file_name", "../../etc/passwd"), "picture-outside", ""),
    "image-id-twice": ("boxes", id_twice("images"), "id-twice", "image id"),
    "annotation-id-twice": ("boxes", id_twice("annotations"), "id-twice", "annotation id"),
    "category-twice": ("boxes", coco(category_twice), "id-twice", "99"),
    "listed-twice": ("boxes", image("file_name", lambda _, d: d["images"][0]["file_name"]), "picture-twice", ""),
    "unknown-image": ("boxes", annotation("image_id", 98765), "picture-unknown", "98765"),
    "unknown-category": ("boxes", annotation("category_id", 98765), "class-unknown", "98765"),
    "negative-width": ("boxes", annotation("bbox", [20, 20, -5, 9]), "box-bad", "x2 15"),
    "no-number": ("boxes", annotation("bbox", [float("nan"), 2, 3, 4], "train.json"), "layout", "NaN is no number"),
    "zero-width": ("boxes", annotation("bbox", [20, 20, 0, 9]), "box-empty", "x2 20"),
    "wholly-outside": ("boxes", annotation("bbox", [5000, 20, 9, 9]), "box-outside", "x1 5000"),
    "partly-outside": ("boxes", annotation("bbox", [-7, 2, 20, 9]), "box-clipped", "x1 -7"),
    "corners": ("boxes", coco(corners), "box-corners", "looks like x1, y1, x2, y2"),
    "cut-json": ("boxes", replace("annotations/*train*", lambda data: data[:-900], 0), "layout", "line 1, column"),
    "three-numbers": ("boxes", annotation("bbox", [1, 2, 3], r"annotations\[4\]"), "record-bad", "not four numbers"),
    "shared": ("boxes", lambda root: shared(root), "picture-shared", "of train"),
    "box-twice": ("boxes", another(lambda first, other: {}), "box-same", "over"),
    "two-classes": ("boxes", another(lambda first, other: {"category_id": other}), "box-rival", "over"),
    "tiny": ("boxes", another(lambda first, other: {"bbox": [10, 10, 2, 20]}), "box-tiny", "2 x 20"),
    "unused-class": ("boxes", coco(unused), "class-unused", ""),
    "runs-of-other-size": ("outlines", annotation("segmentation", RUNS), "outline-bad", "for 8 x 4 pixels"),
    "runs-too-short": ("outlines", lambda root: short_runs(root), "outline-bad", "add up to 32"),
    "two-points": ("outlines", annotation("segmentation", [[1, 1, 9, 9]]), "outline-degenerate", ""),
    "odd-polygon": ("outlines", annotation("segmentation", [[1, 1, 9, 9, 5, 5, 3]]), "outline-degenerate", ""),
    "no-outline": ("outlines", annotation("segmentation", [], r": object \d+ of"), "outline-missing", ""),
    "far-outline": ("outlines", annotation("segmentation", [[1, 1, 90000, 1, 9, 30]]), "outline-clipped", ""),
    "class-too-large": ("yolo", lines(lambda old: ["9" + old[0][1:], *old[1:]]), "class-unknown", "there are 3"),
    "pixels": ("yolo", in_pixels, "box-corners", "looks like pixels"),
    "words": ("yolo", lines(lambda old: [*old, "cat 1 2"]), "record-bad", "cat"),
    "labels-alone": ("yolo", copy("labels/train/*", "labels/train/nobody.txt"), "labels-alone", ""),
    "line-twice": ("yolo", lines(lambda old: [*old, old[0]]), "box-twice", ""),
    "from-one": ("yolo", from_one, "class-first", ""),
    "no-text": ("yolo", replace("labels/train/*", b"\xff\xfe\x00"), "labels-bad", "UTF-8"),
    "no-xml": ("voc", replace("Annotations/*", b"<annotation><object>"), "labels-bad", "no XML"),
    "no-file-of-it": (
        "voc",
        lines(lambda old: [*old, "ghost"], "ImageSets/Main/train.txt", "ghost"),
        "labels-missing",
        "ghost",
    ),
    "number-of-no-class": ("masks", mask(odd_number), "mask-bad", "number 37 in 9 pixels"),
    "other-mask-size": ("masks", mask(lambda array: array[1:]), "mask-bad", "for a picture of"),
    "lossy-mask": ("masks", lossy_mask, "mask-bad", "JPEG"),
    "colours": ("masks", mask(lambda array: np.stack([array] * 3, -1)), "mask-bad", "data.colors"),
    "cut-mask": ("masks", replace("annotations/training/*", lambda data: data[:-30]), "mask-bad", "cut short"),
    "no-mask": ("masks", remove("annotations/training/*"), "layout", "have no mask"),
    "names-alike": ("masks", lambda root: add_name(root), "layout", "differ only by case"),
    "empty-class": ("folders", empty_class, "layout", "no picture of class"),
    "only-validated": ("folders", only_validated, "layout", "unknown class"),
    "alike": ("folders", alike, "layout", "differ only by case"),
    "text": ("folders", replace("train/bees/*", b"hello world, no picture"), "picture-bad", "text"),
    "bomb": ("folders", replace("train/bees/*", BOMB), "picture-bad", "bomb"),
    "conflict": ("folders", copy("train/ants/*", "train/bees/zz.jpg"), "class-conflict", "ants"),
    "repeated": ("folders", copy("train/ants/*", "train/ants/zz.jpg"), "picture-repeated", "ants"),
    "row-gone": ("list", remove("train/ants/*"), "layout", "missing"),
    "row-twice": ("list", line_twice, "layout", "listed twice"),
}


def shared(root):
    """A picture of training takes the place of one of validation, which has its size."""
    first, second = sorted((root / "train").iterdir())[0], sorted((root / "val").iterdir())[0]
    shutil.copyfile(first, second)
    return second.name


def short_runs(root):
    def change(document):
        one = document["annotations"][4]
        sizes = {image["id"]: [image["height"], image["width"]] for image in document["images"]}
        one["segmentation"] = {**RUNS, "size": sizes[one["image_id"]]}
        return _place(document, one)

    return coco(change)(root)


def add_name(root):
    file = root / "classes.txt"
    file.write_text(file.read_text().rstrip() + "\nSKY\n")
    return "SKY"
