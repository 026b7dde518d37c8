"""What `patchform serve` holds: load, bad pictures, slow and hostile clients, lost processes, ends; stage by stage.

    python benchmarks/serving.py RUN PICTURES --out serving.jsonl      all stages, a line of JSON each (25 minutes)
    python benchmarks/serving.py RUN PICTURES --stages L0 L2 --short   some of them, shortened
    python benchmarks/serving.py RUN PICTURES --stages L10 --seconds 3600

RUN is a classifier. Every picture has an answer of its own, that of `patchform predict`, by which answers that were
swapped are seen. The server has a queue of 32, batches of 8, 64 connections, bodies of 10 MB and a token. A stage ends
with what must hold and whether it did; the script ends with 1 if something did not.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_requests import requests as hostile_requests
from http_client import Client, Reply, form, share, summary
from PIL import Image
from serving_faults import CULPRIT

TOKEN = "let-me-in"
LIMITS = ("queue=32", "batch=8", "body=10000000", "connections=64", "receive=10", "answer=10")
QUEUE = 32
CLOSE = 1e-5 + 1e-6
"""Of two scores that are written with six digits."""


class Server:
    """A server in a process of its own."""

    def __init__(self, run: Path, *, seen: Path) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # for as long as the server lives
        script = Path(__file__).parent / "serving_faults.py"
        words = [*("--port", "0", "--json", "--token", TOKEN, "--workers", "1")]
        words += [word for limit in LIMITS for word in ("--limit", limit)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(script.parent / "watched"), *sys.path]),
            "WATCHED": str(seen),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(run), *words], stdout=subprocess.PIPE, stderr=self.log, env=environment
        )
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {self.said()[-2000:]}")
        self.decoders = self.spawned()[1:]  # the model is first
        self.port = int(json.loads(line)["address"].rpartition(":")[2])

    def client(self, token: str | None = TOKEN) -> Client:
        return Client("127.0.0.1", self.port, token)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def processes(self) -> list[int]:
        """It and its children."""
        found = [self.process.pid]
        for number in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{number}/task/{number}/children").read_bytes().split())
        return found

    def spawned(self) -> list[int]:
        """Processes that work for it, in the order of their start."""
        return [one for one in self.processes()[1:] if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]

    def model(self) -> int:
        """The process of the model: the one that does not decode."""
        return next(one for one in self.spawned() if one not in self.decoders)

    def memory(self) -> float:
        """MB of all its processes, shared pages counted once."""
        total = 0
        for number in self.processes():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{number}/smaps_rollup").read_bytes().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(b"Pss:"))
        return total / 1e3

    def open_files(self) -> int:
        count = 0
        for number in self.processes():
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{number}/fd"))
        return count

    async def metrics(self) -> dict[str, float]:
        client = self.client(None)
        lines = (await client.get("/metrics")).body.decode().splitlines()
        client.close()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


class Bench:
    """What all stages share."""

    def __init__(self, server: Server, pictures: list[bytes], short: bool, seconds: float | None) -> None:
        self.server, self.pictures, self.short, self.long = server, pictures, short, seconds
        self.expected: list[Any] = []
        self.capacity = 0.0

    def seconds(self, wanted: float) -> float:
        return wanted / 10 if self.short else wanted

    def right(self, index: int, reply: Reply) -> bool:
        """Whether it is the answer of this picture and no other."""
        if reply.status != 200:
            return False
        wanted, found = self.expected[index], reply.json()
        near = {one["label"]: one["score"] for one in wanted["top"]}
        apart = [abs(one["score"] - near.get(one["label"], 9)) for one in found["top"]]
        return found["label"] == wanted["label"] and max(apart) <= CLOSE

    async def clients(self, number: int, seconds: float, *, seed: int = 0) -> tuple[list[Reply], int]:
        """Closed loop: so many ask for so long, each again as soon as it has an answer. Replies, and how many wrong."""
        end, replies, wrong = time.perf_counter() + seconds, [], 0

        async def one(name: int) -> None:
            nonlocal wrong
            client, draw = self.server.client(), random.Random(1000 * seed + name)
            while time.perf_counter() < end:
                index = draw.randrange(len(self.pictures))
                reply = await client.post("/predict", self.pictures[index])
                replies.append(reply)
                wrong += not self.right(index, reply)
            client.close()

        await asyncio.gather(*map(one, range(number)))
        return replies, wrong


# ------------------------------------------------------------------------------------------------------------- stages


async def l0(bench: Bench) -> dict[str, Any]:
    """One client, every picture: the answers of `patchform predict`, to the bit."""
    client, same = bench.server.client(), 0
    for index, picture in enumerate(bench.pictures):
        reply = await client.post("/predict", picture)
        same += reply.status == 200 and {k: v for k, v in reply.json().items() if k != "size"} == bench.expected[index]
    client.close()
    return {"equal": same, "of": len(bench.pictures), "holds": same == len(bench.pictures)}


async def l1(bench: Bench) -> dict[str, Any]:
    """More and more clients: no answer wrong, none swapped."""
    found, holds = {}, True
    for number in (2, 4, 8, 16, 32):
        replies, wrong = await bench.clients(number, bench.seconds(30), seed=number)
        times = summary([reply.seconds for reply in replies])
        found[number] = {
            "requests": len(replies),
            "wrong": wrong,
            "a second": len(replies) / bench.seconds(30),
            **times,
        }
        holds &= wrong == 0 and (number != 8 or times["p99"] <= 4 * times["p50"])
    bench.capacity = found[8]["a second"]
    return {"clients": found, "holds": holds}


def bad_requests() -> list[tuple[str, bytes, str]]:
    """Name, body, type; each is refused."""
    small = Image.linear_gradient("L").resize((64, 64))
    stream, bomb = io.BytesIO(), io.BytesIO()
    small.convert("RGB").save(stream, "JPEG")
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    jpeg = stream.getvalue()
    return [
        ("empty", b"", "image/jpeg"),
        ("text", b"<html>404</html>", "image/jpeg"),
        ("half a JPEG", jpeg[: len(jpeg) // 2], "image/jpeg"),
        ("bomb", bomb.getvalue(), "image/png"),
        ("no type that is taken", jpeg, "application/json"),
        ("address", b"http://169.254.169.254/", "text/uri-list"),
        ("form without a file", *form(jpeg, name="other")),
        ("damaged form", b"--frontier\r\nnonsense", "multipart/form-data; boundary=frontier"),
    ]


async def l2(bench: Bench) -> dict[str, Any]:
    """Sixteen good clients, one request of four bad: every good one is answered, every bad one told why."""
    bad, total = bad_requests(), 200 if bench.short else 2000
    good_wrong, told, left = 0, Counter(), iter(range(total))

    async def one(name: int) -> None:
        nonlocal good_wrong
        client, draw = bench.server.client(), random.Random(name)
        for number in left:
            if number % 4:
                index = draw.randrange(len(bench.pictures))
                good_wrong += not bench.right(index, await client.post("/predict", bench.pictures[index]))
            else:
                kind, body, of = bad[number // 4 % len(bad)]
                reply = await client.post("/predict", body, of)
                told[f"{kind}: {reply.status} {reply.json()['code'] if reply.status else ''}"] += 1
        client.close()

    await asyncio.gather(*map(one, range(16)))
    fourhundreds = all(name.split(": ")[1].startswith("4") for name in told)
    return {"good wrong": good_wrong, "bad": dict(told), "holds": good_wrong == 0 and fourhundreds}


async def l3(bench: Bench) -> dict[str, Any]:
    """Twice and five times what it can: what is accepted is answered in time, the rest is told so at once."""
    base, found, holds = bench.server.memory(), {}, True
    for times in (2, 5):
        seconds, rate = bench.seconds(30), times * bench.capacity
        replies: list[tuple[int, Reply]] = []

        async def one(index: int, into: list[tuple[int, Reply]]) -> None:
            client = bench.server.client()
            into.append((index, await client.post("/predict", bench.pictures[index])))
            client.close()

        begin, tasks = time.perf_counter(), []
        while (now := time.perf_counter()) < begin + seconds:
            while len(tasks) < rate * (now - begin):
                tasks.append(asyncio.create_task(one(len(tasks) % len(bench.pictures), replies)))
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        good = [reply for index, reply in replies if bench.right(index, reply)]
        refused = [reply for _, reply in replies if reply.status == 503]
        other = Counter(
            reply.status for index, reply in replies if reply.status != 503 and not bench.right(index, reply)
        )
        row = {
            "asked a second": len(replies) / seconds, "good a second": len(good) / seconds, "capacity": bench.capacity,
            "accepted": summary([one.seconds for one in good]), "refused": summary([one.seconds for one in refused]),
            "number refused": len(refused), "others": dict(other),
            "with Retry-After": sum("retry-after" in one.headers for one in refused),
        }  # fmt: skip
        bound = 2 * QUEUE / bench.capacity + 0.5
        row["holds"] = {
            "good": row["good a second"] >= 0.8 * bench.capacity,
            "refused within 50 ms": share([one.seconds for one in refused], 0.99) < 0.05,
            f"accepted within {bound:.2f} s": share([one.seconds for one in good], 0.99) <= bound,
            "nothing else": not other,
        }
        found[f"{times} x"] = row
        holds &= all(row["holds"].values())
    await asyncio.sleep(2)
    replies, wrong = await bench.clients(4, bench.seconds(10))
    growth = bench.server.memory() - base
    return {**found, "MB more": growth, "wrong after 2 s": wrong, "holds": holds and wrong == 0 and growth < 100}


async def slow(bench: Bench, kind: str, closed: list[float]) -> None:
    """A client that never ends its request; how long it was borne."""
    begin = time.perf_counter()
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.server.port)
        client = bench.server.client()
        if kind == "header":
            writer.write(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        elif kind == "body":
            writer.write(client.head("POST", "/predict", 1000, "image/jpeg"))
        reading = asyncio.ensure_future(reader.read())
        while not reading.done() and time.perf_counter() < begin + 30:
            await asyncio.wait({reading}, timeout=1)
            if kind != "idle":
                with contextlib.suppress(OSError):
                    writer.write(b"x")
        reading.cancel()
        writer.close()
    closed.append(time.perf_counter() - begin)


async def l4(bench: Bench) -> dict[str, Any]:
    """Eight good clients among three hundred that send a byte a second, or nothing."""
    plain, _ = await bench.clients(8, bench.seconds(10))
    closed: list[float] = []
    kinds = ["header"] * 200 + ["body"] * 50 + ["idle"] * 50
    slowly = [asyncio.create_task(slow(bench, kind, closed)) for kind in kinds]
    replies, wrong = await bench.clients(8, 15)
    await asyncio.gather(*slowly)
    times, before = summary([one.seconds for one in replies]), summary([one.seconds for one in plain])
    good = 1 - wrong / max(1, len(replies))
    holds = good >= 0.99 and times["p99"] <= 3 * before["p99"] and len(closed) == 300 and max(closed) <= 11
    return {"good": good, **times, "p99 without them": before["p99"], "longest borne": max(closed), "holds": holds}


async def huge(bench: Bench) -> int:
    """A body of a gigabyte in pieces; the status."""
    client = bench.server.client()
    await client.open()
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    reading = asyncio.ensure_future(client.reply(time.perf_counter()))
    with contextlib.suppress(OSError):
        client.writer.write(client.head("POST", "/predict", None, "image/jpeg", Transfer_Encoding="chunked"))
        for _ in range(16_384):
            if reading.done():
                break
            client.writer.write(piece)
            await client.writer.drain()
    try:
        return (await asyncio.wait_for(reading, 20)).status
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return 0
    finally:
        client.close()


async def l5(bench: Bench) -> dict[str, Any]:
    """Gigabytes, ten thousand parts, bombs: refused, and little memory taken."""
    base, peak, done = bench.server.memory(), 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, bench.server.memory())
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    good = asyncio.create_task(bench.clients(4, bench.seconds(60)))
    bomb = next(body for name, body, _ in bad_requests() if name == "bomb")
    many, kind = form(*[b"x"] * 10_000)

    async def post(body: bytes, of: str) -> int:
        client = bench.server.client()
        status = (await client.post("/predict", body, of)).status
        client.close()
        return status

    attacks = [huge(bench) for _ in range(50)] + [post(many, kind) for _ in range(50)]
    attacks += [post(bomb, "image/png") for _ in range(20)]
    statuses = Counter()
    for start in range(0, len(attacks), 20):  # as many at once as leave places for others
        statuses.update(await asyncio.gather(*attacks[start : start + 20]))
    replies, wrong = await good
    done.set()
    await watching
    share_good = 1 - wrong / max(1, len(replies))
    holds = set(statuses) <= {400, 413} and peak <= base + 150 and share_good >= 0.99
    return {"statuses": dict(statuses), "MB before": base, "MB at most": peak, "good": share_good, "holds": holds}


async def l6(bench: Bench) -> dict[str, Any]:
    """Five hundred who leave as soon as they have asked: not worked for, if they still waited."""
    before = await bench.server.metrics()
    good = asyncio.create_task(bench.clients(8, bench.seconds(20)))

    async def leave(index: int) -> None:
        client = bench.server.client()
        with contextlib.suppress(OSError):
            await client.open()
            body = bench.pictures[index % len(bench.pictures)]
            client.writer.write(client.head("POST", "/predict", len(body), "image/jpeg") + body)
            await client.writer.drain()
            await asyncio.sleep(0.1 * random.Random(index).random())
        client.close()

    for start in range(0, 500, 20):
        await asyncio.gather(*(leave(index) for index in range(start, start + 20)))
        await asyncio.sleep(0.05)
    replies, wrong = await good
    await asyncio.sleep(1)
    after = await bench.server.metrics()
    computed = after["patchform_batch_pictures_sum"] - before["patchform_batch_pictures_sum"]
    left = after["patchform_left_total"] - before["patchform_left_total"]
    statuses = dict(Counter(reply.status for reply in replies))
    found = {"good": statuses, "wrong": wrong, "pictures computed": computed, "not worked for": left}
    found["waiting at the end"] = after["patchform_waiting"]
    return found | {
        "holds": wrong == 0 and left > 0 and computed < len(replies) + 500 and not found["waiting at the end"]
    }


async def l7(bench: Bench) -> dict[str, Any]:
    """The model's process is killed three times, and one picture in fifty breaks it or its memory."""
    states, refused, wrong, culprits, good, end = Counter(), Counter(), 0, Counter(), 0, time.perf_counter() + 60
    away: list[float] = []

    async def one(name: int) -> None:
        nonlocal wrong, good
        client, draw = bench.server.client(), random.Random(name)
        number = 0
        while time.perf_counter() < end:
            number += 1
            if number % 50 == 25:
                reply = await client.post("/predict", CULPRIT[number // 50 % len(CULPRIT)], "image/png")
                culprits[f"{reply.status} {reply.json()['code'] if reply.status else ''}"] += 1
                continue
            index = draw.randrange(len(bench.pictures))
            reply = await client.post("/predict", bench.pictures[index])
            if reply.status == 503:
                refused[reply.json()["code"]] += 1
                await asyncio.sleep(0.2)
            else:
                good += 1
                wrong += not bench.right(index, reply)
        client.close()

    async def watch() -> None:
        client, since = bench.server.client(None), None
        while time.perf_counter() < end:
            states[f"/live {(await client.get('/live')).status}"] += 1
            status = (await client.get("/ready")).status
            states[f"/ready {status}"] += 1
            if status != 200 and since is None:
                since = time.perf_counter()
            elif status == 200 and since is not None:
                away.append(time.perf_counter() - since)
                since = None
            await asyncio.sleep(0.05)

    async def kill() -> None:
        for _ in range(3):
            await asyncio.sleep(14)
            os.kill(bench.server.model(), signal.SIGKILL)

    await asyncio.gather(*map(one, range(8)), watch(), kill())
    holds = wrong == 0 and set(states) <= {"/live 200", "/ready 200", "/ready 503"} and len(away) == 3
    holds &= max(away, default=99) <= 10 and set(refused) <= {"restarting"}
    holds &= all(name.split()[1] in ("no_memory", "model_failed", "restarting") for name in culprits)
    found = {"good": good, "wrong": wrong, "refused": dict(refused), "culprits": dict(culprits)}
    return found | {"states": dict(states), "seconds away": away, "holds": holds}


async def l8(bench: Bench) -> dict[str, Any]:
    """Told to end under load: what was accepted is answered, what comes is refused, and it ends with 0."""
    rows, holds = [], True
    for trial in range(2 if bench.short else 5):
        server = Server(bench.run, seen=bench.seen)
        inner = Bench(server, bench.pictures, bench.short, None)
        inner.expected = bench.expected
        lost, ended, good, told = 0, Counter(), 0, asyncio.Event()

        async def one(name: int, inner=inner, server=server, told=told, ended=ended) -> None:
            nonlocal lost, good
            client, draw = server.client(), random.Random(name)
            while True:
                index = draw.randrange(len(inner.pictures))
                before = told.is_set()
                reply = await client.post("/predict", inner.pictures[index])
                if inner.right(index, reply):
                    good += 1
                elif reply.status == 503 or before:
                    ended[reply.status] += 1
                    return
                else:
                    lost += 1
                    return

        tasks = [asyncio.create_task(one(name)) for name in range(16)]
        await asyncio.sleep(random.Random(trial).uniform(0.5, 2))
        begin = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        told.set()
        await asyncio.gather(*tasks)
        code = await asyncio.to_thread(server.process.wait, 30)
        rows.append(
            {"good": good, "lost": lost, "refused": dict(ended), "code": code, "s": time.perf_counter() - begin}
        )
        holds &= lost == 0 and code == 0 and rows[-1]["s"] <= 10
    server = Server(bench.run, seen=bench.seen)
    client = server.client()
    await client.open()
    client.writer.write(client.head("POST", "/predict", 1000, "image/jpeg"))  # a request that is never whole
    await asyncio.sleep(0.3)
    begin = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.process.wait, 30)
    twice = {"code": code, "s": time.perf_counter() - begin}
    return {"trials": rows, "twice": twice, "holds": holds and twice["s"] <= 2}


async def l9(bench: Bench) -> dict[str, Any]:
    """Paths, headers, tokens, addresses, smuggled requests: refused; nothing is opened or connected to."""
    mark = bench.seen.stat().st_size
    told, wrong = Counter(), []
    for name, data, allowed in hostile_requests(bench.server.port, TOKEN):
        client = bench.server.client()
        reply = await client.send(data)
        client.close()
        told[reply.status] += 1
        if reply.status not in allowed:
            wrong.append(f"{name}: {reply.status}")
        if any(word in reply.body for word in (b"Traceback", b"/tmp", b"/home", b"site-packages", b"patchform/")):
            wrong.append(f"{name}: {reply.body[:100]!r}")
    replies, bad = await bench.clients(1, 2)
    watched = [line for line in bench.seen.read_bytes()[mark:].decode(errors="replace").splitlines() if line]
    lines = bench.server.said().splitlines()
    unescaped = [line for line in lines if line.startswith("{") and not _is_json(line)]
    holds = not wrong and not watched and not unescaped and bad == 0 and bool(replies)
    return {"probes": sum(told.values()), "statuses": dict(told), "wrong": wrong, "opened or connected to": watched,
            "lines of the log that are no JSON": unescaped, "holds": holds}  # fmt: skip


def _is_json(line: str) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


async def l10(bench: Bench) -> dict[str, Any]:
    """Half of what it can, good and bad and slow, for long: memory and open files stay."""
    seconds, rate = bench.long or bench.seconds(600), bench.capacity / 2
    bad, memory, files = bad_requests(), [], []
    wrong = asked = 0
    closed: list[float] = []
    clients = [bench.server.client() for _ in range(16)]
    free: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)

    async def one(number: int) -> None:
        nonlocal wrong, asked
        client = await free.get()
        if number % 4:
            index = number % len(bench.pictures)
            reply = await client.post("/predict", bench.pictures[index])
            asked += 1
            wrong += not bench.right(index, reply)
        else:
            _, body, of = bad[number // 4 % len(bad)]
            await client.post("/predict", body, of)
        free.put_nowait(client)

    begin, tasks, number, slowly, noted = time.perf_counter(), set(), 0, set(), 0.0
    while (now := time.perf_counter() - begin) < seconds:
        while number < rate * now:
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        if len(slowly) < 10:
            task = asyncio.create_task(slow(bench, ("header", "body", "idle")[number % 3], closed))
            slowly.add(task)
            task.add_done_callback(slowly.discard)
        if now >= noted:
            memory.append((now, bench.server.memory()))
            files.append(bench.server.open_files())
            noted += max(1, seconds / 120)
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks, *slowly)
    late = [(at, value) for at, value in memory if at >= min(120, seconds / 4)]
    slope = 60 * _slope(late)
    found = {
        "seconds": seconds,
        "good": asked,
        "wrong": wrong,
        "MB a minute": slope,
        "MB": late[0][1],
        "MB at the end": late[-1][1],
    }
    found |= {"open files": [min(files), max(files)], "slow borne": max(closed, default=0.0)}
    return found | {"holds": wrong == 0 and slope < 1 and files[-1] <= files[len(files) // 4] + 20}


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares."""
    number = len(points)
    middle, height = sum(x for x, _ in points) / number, sum(y for _, y in points) / number
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - height) for x, y in points) / max(spread, 1e-9)


STAGES: dict[str, Callable[[Bench], Any]] = {
    stage.__name__.upper(): stage for stage in (l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10)
}


def predicted(run: Path, pictures: list[Path]) -> list[Any]:
    """By `patchform predict`, one picture at a time."""
    words = [sys.executable, "-m", "patchform", "predict", str(run), "--batch-size", "1", *map(str, pictures)]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "file"} for line in lines]


async def run_stages(bench: Bench, names: list[str], out: Path | None) -> bool:
    holds = True
    for name in names:
        if name in ("L3", "L10") and not bench.capacity:
            replies, _ = await bench.clients(8, bench.seconds(30))
            bench.capacity = len(replies) / bench.seconds(30)
        begin = time.perf_counter()
        found = await STAGES[name](bench)
        line = json.dumps({"stage": name, "took": round(time.perf_counter() - begin, 1), **found})
        print(line, flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        holds &= found["holds"]
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path, help="folder of JPEG files")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--short", action="store_true", help="a tenth of the time")
    parser.add_argument("--seconds", type=float, help="of L10 (default: 600)")
    parser.add_argument("--out", type=Path, help="file of results, a line each")
    arguments = parser.parse_args()
    paths = sorted(arguments.pictures.rglob("*.jpg"))[:200]
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"
        seen.touch()
        server = Server(arguments.run, seen=seen)
        try:
            bench = Bench(server, [path.read_bytes() for path in paths], arguments.short, arguments.seconds)
            bench.run, bench.seen = arguments.run, seen
            bench.expected = predicted(arguments.run, paths)
            holds = asyncio.run(run_stages(bench, arguments.stages, arguments.out))
        finally:
            code = server.end()
    print(json.dumps({"ended with": code}))
    return 0 if holds and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
