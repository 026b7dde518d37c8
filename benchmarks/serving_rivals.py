"""Pictures a second of one model behind three servers, side by side: `patchform serve`, FastAPI alone, LitServe.

    python benchmarks/serving_rivals.py RUN PICTURES [--clients 16] [--seconds 20] [--rounds 3]

Each server runs by itself, in turns, round after round; the same client asks in the same way, and every answer is held
against that of `patchform predict`. FastAPI has one endpoint that decodes and predicts on its threads, a picture at a
time; LitServe makes batches of the same size and patience as patchform, and gets pictures in JSON, as it takes no
bodies of bytes. What is not installed is left out.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from statistics import median

from http_client import Client, summary
from serving import CLOSE, predicted

BATCH, PATIENCE = 16, 0.005


def fastapi(run, port):
    """The simplest service: whoever comes takes a thread, and the model."""
    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    import patchform as pf

    app, predictor = FastAPI(), pf.load(run)

    def answer(content):
        return predictor(content).as_json()

    @app.post("/predict")
    async def predict(request: Request):
        return await run_in_threadpool(answer, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical")


def litserve(run, port):
    """Batches by time, in a process of the model."""
    from serving_litserve import serve

    serve(run, port, BATCH, PATIENCE)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def started(name, run, port):
    words = [sys.executable, __file__, str(run), "-", "--serve", name, "--port", str(port)]
    if name == "patchform":
        limits = ("--limit", f"batch={BATCH}", "--limit", f"wait={PATIENCE}")
        words = [sys.executable, "-m", "patchform", "serve", str(run), "--port", str(port), *limits]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def as_json(picture):
    """A body for LitServe."""
    return json.dumps({"picture": b64encode(picture).decode()}).encode()


async def measured(port, pictures, expected, clients, seconds, kind="image/jpeg"):
    """Replies in so many seconds, after some that warm it up; and how many were wrong."""
    end, wrong = time.perf_counter() + 120, 0
    probe = Client("127.0.0.1", port)
    while (await probe.post("/predict", pictures[0], kind)).status != 200:
        if time.perf_counter() > end:
            raise SystemExit("a server does not answer")
        await asyncio.sleep(0.2)
    times = []

    async def one(name, until, keep):
        nonlocal wrong
        client, index = Client("127.0.0.1", port), name
        while time.perf_counter() < until:
            index = (index + 1) % len(pictures)
            reply = await client.post("/predict", pictures[index], kind)
            if keep:
                times.append(reply.seconds)
                wrong += not is_right(reply, expected[index])
        client.close()

    for length, keep in ((3, False), (seconds, True)):
        until = time.perf_counter() + length
        await asyncio.gather(*(one(name, until, keep) for name in range(clients)))
    probe.close()
    return times, wrong


def is_right(reply, wanted):
    if reply.status != 200:
        return False
    near = {one["label"]: one["score"] for one in wanted["top"]}
    return all(abs(one["score"] - near.get(one["label"], 9)) <= CLOSE for one in reply.json()["top"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return {"fastapi": fastapi, "litserve": litserve}[arguments.serve](arguments.run, arguments.port)
    paths = sorted(arguments.pictures.rglob("*.jpg"))[:200]
    pictures, expected = [path.read_bytes() for path in paths], predicted(arguments.run, paths)
    bodies = [as_json(picture) for picture in pictures]
    names = ["patchform", "fastapi"] + (["litserve"] if importlib.util.find_spec("litserve") else [])
    rates = {name: [] for name in names}
    for turn in range(arguments.rounds):
        for name in names if turn % 2 == 0 else names[::-1]:
            port = free_port()
            process = started(name, arguments.run, port)
            try:
                sent, kind = (bodies, "application/json") if name == "litserve" else (pictures, "image/jpeg")
                work = measured(port, sent, expected, arguments.clients, arguments.seconds, kind)
                times, wrong = asyncio.run(work)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                time.sleep(1)
                os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
                process.wait()
            rates[name].append(len(times) / arguments.seconds)
            print(
                json.dumps({"server": name, "a second": rates[name][-1], "wrong": wrong, **summary(times)}), flush=True
            )
    for name in names[1:]:
        ratios = [own / other for own, other in zip(rates["patchform"], rates[name])]
        print(
            f"patchform answers {median(ratios):.2f} times as many as {name} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
