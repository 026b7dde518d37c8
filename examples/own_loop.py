"""The model in a loop of your own: no trainer, no hooks."""

import torch

import patchform as pf
from patchform.records import Batch, Label, Preprocessing

torch.manual_seed(0)
model = pf.build_model(
    "classification",
    backbone="vit/nano",
    head="linear",
    classes=["dark", "light"],
    preprocessing=Preprocessing(size=(32, 32)),
)
levels = torch.tensor([60, 190] * 8)
images = (levels[:, None, None, None] + torch.randint(-30, 30, (16, 3, 32, 32))).to(torch.uint8)
targets = tuple(Label(torch.tensor([int(level > 100)])) for level in levels)
batch = Batch(images, targets, tuple(map(str, range(16))), ((32, 32),) * 16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(20):
    loss = sum(one.mean for one in model(batch).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
answers = model.eval().predict(batch)
print([model.classes[int(answer.classes)] for answer in answers[:4]])
