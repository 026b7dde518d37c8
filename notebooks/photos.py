# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Photos: train, look, predict
#
# To open this file as a notebook: `pip install jupytext notebook`, then `jupytext --to notebook photos.py`;
# JupyterLab opens it as it is.
#
# It learns from scans of digits that come with scikit-learn: nothing is fetched. Your own photos lie in a folder with a
# folder for each class; then `data="photos/"` is all that changes.

# %%
import tempfile

from sklearn.datasets import load_digits

import patchform as pf

scans = load_digits()
pictures = [((image * 15.9).astype("uint8"), f"digit {number}") for image, number in zip(scans.images, scans.target)]
learn, judge = pictures[:1400], pictures[1400:]
len(learn), len(judge)

# %% [markdown]
# Training says what it trains and from what, then a line for each epoch. The run shows its curves.

# %%
quick = {
    "model": {"options": {"depth": 2}},
    "training": {"epochs": 10, "batch_size": 32, "ema": 0.0},
    "optimizer": {"lr": 4e-3},
    "schedule": {"warmup_epochs": 0.5},
    "augmentation": {"crop_scale": [1.0, 1.0]},
}
data, place = (learn, judge), tempfile.mkdtemp()
run = pf.train("classification/digits", data=data, name="digits", runs=place, page=False, **quick)
run

# %% [markdown]
# The scores, each with what it means, and what is taken for what.

# %%
scores = pf.evaluate(run.folder, data=judge)
scores

# %% [markdown]
# A picture: a path, an array or a PIL image. The prediction shows itself; names, not numbers.

# %%
predictor = pf.load(run.folder)
predictor(judge[0][0])

# %%
[predictor(image).as_json()["label"] for image, _ in judge[:5]], [name for _, name in judge[:5]]

# %% [markdown]
# Where it is wrong, the surest mistake first.

# %%
answers = predictor([image for image, _ in judge[:100]])
said = [answer.as_json() for answer in answers]
wrong = [number for number, answer in enumerate(said) if answer["label"] != judge[number][1]]
wrong.sort(key=lambda number: -said[number]["score"])
answers[wrong[0] if wrong else 0]

# %% [markdown]
# The epochs are plain Python. Without `page=False` the run ends with a page of all this, `report.html` in its folder.

# %%
[(row["epoch"], round(row["val_loss"], 3), round(row["top1"], 3)) for row in run.history]
