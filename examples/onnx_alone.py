"""What pictures show, by onnxruntime, numpy and Pillow alone: python examples/onnx_alone.py model.onnx a.jpg b.jpg

For pictures of 8 bits and 1 or 3 channels: prints [class, score], of objects [class, score, [x1, y1, x2, y2]].
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized(image, rule, *, resample):  # as the model was taught
    (tall, wide), (width, height) = rule["size"], image.size
    if rule["resize"] == "crop":  # to just cover a little more than the input, whose centre is taken
        h, w = (int(side / rule["crop_share"]) for side in (tall, wide))
        h, w = (h, width * h // height) if width * h > height * w else (height * w // width, w)
        top, left = round((h - tall) / 2), round((w - wide) / 2)
        return image.resize((w, h), resample).crop((left, top, left + wide, top + tall))
    if rule["resize"] in ("keep", "fit"):  # at its aspect
        longest = 4 * min(tall, wide) if rule["resize"] == "keep" else max(tall, wide)
        scale = min(min(tall, wide) / min(image.size), longest / max(image.size))
        tall, wide = (max(1, round(side * scale)) for side in (height, width))
    return image if rule["resize"] == "native" else image.resize((wide, tall), resample)


for path in sys.argv[2:] or print(__doc__) or ():
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["patchform"])
    rule = about["preprocessing"] | ({"resize": "native"} if about["resizes"] else {})
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB" if rule["channels"] == 3 else "L")
    pixels = resized(image, rule, resample=Image.Resampling[rule["interpolation"].upper()])
    given = {"images": np.atleast_3d(pixels).transpose(2, 0, 1)[None], "sizes": np.array([image.size[::-1]])}
    found = dict(zip(about["outputs"], session.run(about["outputs"], {name: given[name] for name in about["inputs"]})))
    names = ("top_classes", "top_scores") if "top_classes" in found else ("classes", "scores", "boxes")
    rows = zip(*(found[name][0][found.get("confident", [slice(None)])[0]].tolist() for name in names))
    print(json.dumps({"file": path, "found": [(about["classes"][number], *values) for number, *values in rows]}))
