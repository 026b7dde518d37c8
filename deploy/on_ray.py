"""A model on many machines, by Ray Serve: RUN=runs/first serve run deploy.on_ray:application

Install it with pip install "ray[serve]".
Each replica holds the model; Ray finds free ones, starts more under load, and starts again those that end. A picture
goes in as the body of a POST and comes out as the record of `patchform predict`. Requests of one replica that come
together go through the model together. What Ray's proxy does not do (deadlines, bounds of bodies) a proxy before it
has to: see docs/serving.md.
"""

import os

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import patchform as pf


@serve.deployment(
    max_ongoing_requests=32,  # of a replica; more wait at others, and beyond `max_queued_requests` are refused
    max_queued_requests=256,
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 8},
    ray_actor_options={"num_cpus": 1},
)
class Pictures:
    """A replica."""

    def __init__(self, run: str) -> None:
        self.predictor = pf.load(run)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def answer(self, contents: list[bytes]) -> list[dict]:
        """Records, with an error in the place of what is no picture."""
        found = self.predictor(contents)
        return [prediction.as_json() for prediction in found]

    async def __call__(self, request: Request) -> JSONResponse:
        """A picture."""
        record = await self.answer(await request.body())
        record.pop("file")
        return JSONResponse(record, 400 if "error" in record else 200)


application = Pictures.bind(os.environ["RUN"])
