"""What pictures show, from an exported file alone: python examples/onnx_alone.py model.onnx a.jpg b.jpg

Needs onnxruntime, numpy and Pillow, and neither patchform nor torch. The file says itself how pictures become its input
and what its numbers mean. For 8-bit pictures of 1 or 3 channels; classes of pictures, and objects with their boxes.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["patchform"])
rule = about["preprocessing"]


def prepared(image):
    """The picture as the file takes it."""
    (height, width), (tall, wide), short = image.size[::-1], rule["size"], min(rule["size"])
    resampling, how = Image.Resampling[rule["interpolation"].upper()], rule["resize"]
    if about["resizes"] or how == "native":
        return image
    if how == "squash":
        return image.resize((wide, tall), resampling)
    if how == "crop":  # resized to just cover a little more than the input, whose centre is taken
        h, w = (int(side / rule["crop_share"]) for side in (tall, wide))
        h, w = (h, width * h // height) if width * h > height * w else (height * w // width, w)
        top, left = round((h - tall) / 2), round((w - wide) / 2)
        return image.resize((w, h), resampling).crop((left, top, left + wide, top + tall))
    scale = min(short / min(height, width), (4 * short if how == "keep" else max(tall, wide)) / max(height, width))
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resampling)


for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB" if rule["channels"] == 3 else "L")
    pixels = np.atleast_3d(np.asarray(prepared(image))).transpose(2, 0, 1)[None]  # (1, C, H, W) uint8
    given = {"images": pixels, "sizes": np.array([[image.height, image.width]])}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {x.name: given[x.name] for x in session.get_inputs()})))
    if "top_classes" in found:
        rows = zip(found["top_classes"][0], found["top_scores"][0])
        answer = [{"label": about["classes"][c], "score": float(score)} for c, score in rows]
    else:
        rows = zip(*(found[name][0][found["confident"][0]] for name in ("classes", "scores", "boxes")))
        answer = [{"name": about["classes"][c], "score": float(s), "corners": box.tolist()} for c, s, box in rows]
    print(json.dumps({"file": path, "found": answer}))
