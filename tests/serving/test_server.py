"""Whole servers with their processes: slow and leaving clients, lost processes, ends (S8 to S10)."""

import asyncio
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from sent import picture

from patchform.cli import main
from patchform.errors import UsageError
from patchform.serving.limits import Limits, parse
from patchform.serving.server import Place

JPEG = {"content-type": "image/jpeg"}
TOKEN = "let-me-in"
EXAMPLE = Path(__file__).parents[2] / "examples" / "ask_a_server.py"


class Running:
    """A server in a process of its own."""

    def __init__(self, folder, *words):
        command = [sys.executable, "-m", "patchform", "serve", str(folder), "--port", "0", "--json", *words]
        environment = os.environ | {"PATCHFORM_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody empties would fill
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment)
        line = self.process.stdout.readline()
        assert line, self.said()
        self.told = json.loads(line)
        self.port = int(self.told["address"].rpartition(":")[2])
        # no connection is kept, which the server may close to make room
        headers = {"authorization": f"Bearer {TOKEN}", "connection": "close"}
        self.client = httpx.Client(base_url=self.told["address"], headers=headers, timeout=30, trust_env=False)

    def predict(self, content=None):
        return self.client.post("/predict", content=picture() if content is None else content, headers=JPEG)

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def metric(self, name):
        found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="module")
def running(folder):
    words = ("--limit", "receive=1", "--limit", "connections=8", "--limit", "batch=2")
    with closing(Running(folder, *words)) as server:
        yield server


def head(length, *more):
    lines = ("POST /predict HTTP/1.1", "Host: a", f"Authorization: Bearer {TOKEN}", f"Content-Length: {length}", *more)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer_of(connection):
    """All that comes until the connection is closed, and the seconds that took."""
    begin, found = time.monotonic(), b""
    while piece := connection.recv(65536):
        found += piece
    return found, time.monotonic() - begin


def one_answer(connection, body):
    """Of a picture, on a connection that is kept."""
    connection.sendall(head(len(body), "Content-Type: image/jpeg") + body)
    found = b""
    while not found.endswith(b"}"):
        found += connection.recv(65536)
    return found


def test_a_server_says_where_it_is_and_what_it_serves(running):
    assert running.told["classes"] == ["cat", "dog", "owl"]
    assert running.told["task"] == "classification"
    assert running.predict().json()["label"] in running.told["classes"]


def test_the_example_of_a_client(running, tmp_path, capsys, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(picture(3))
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    words = ["ask_a_server.py", running.told["address"], str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("PATCHFORM_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    runpy.run_path(str(EXAMPLE))
    good, bad = (json.loads(line.partition(" ")[2]) for line in capsys.readouterr().out.splitlines())
    assert good == running.predict(picture(3)).json()
    assert bad["code"] == "bad_picture"


@pytest.mark.parametrize(
    "begun", [b"", b"POST /pre", b"POST /predict HTTP/1.1\r\nX-Slow: a", head(1000), head(1000) + b"x" * 10]
)
def test_s8_what_is_not_whole_in_time_is_ended(running, begun):
    with running.connect() as connection:
        connection.sendall(begun)
        found, seconds = answer_of(connection)
    assert b" 408 " in found.split(b"\r\n")[0]
    assert b'"late"' in found
    assert 0.5 < seconds < 8  # one is wanted; this machine may be busy


def test_s8_a_second_request_on_a_connection_has_its_own_time(running):
    with running.connect() as connection:
        body = picture()
        connection.sendall(head(len(body), "Content-Type: image/jpeg") + body)
        first = connection.recv(65536)
        time.sleep(0.5)
        connection.sendall(head(1000))
        found, _ = answer_of(connection)
    assert b" 200 " in first.split(b"\r\n")[0]
    assert b" 408 " in found.split(b"\r\n")[0]


def test_s8_half_open_connections_keep_nobody_out(running):
    """Three times as many as the server takes: the oldest are ended, and who asks is answered."""
    with ExitStack() as stack:
        held = [stack.enter_context(running.connect()) for _ in range(24)]
        for connection in held:
            connection.sendall(b"POST /predict HTTP/1.1\r\nX-Slow: a")
        assert [running.predict().status_code for _ in range(5)] == [200] * 5
        told = []
        for connection in held:
            try:
                told.append(answer_of(connection)[0].split(b"\r\n")[0])
            except ConnectionResetError:  # ended before what it sent was read
                told.append(b"HTTP/1.1 503 ")
    assert told[:16] == [b"HTTP/1.1 503 "] * 16
    assert set(told[16:]) <= {b"HTTP/1.1 503 ", b"HTTP/1.1 408 "}


def test_s8_connections_that_ask_nothing_more_keep_nobody_out(running):
    """They had an answer and were kept: the oldest is closed without a word."""
    body = picture()
    with ExitStack() as stack:
        held = []
        for _ in range(12):
            held.append(stack.enter_context(running.connect()))
            assert one_answer(held[-1], body).startswith(b"HTTP/1.1 200 ")
        assert running.predict().status_code == 200
        assert answer_of(held[0])[0] == b""
        assert one_answer(held[-1], body).startswith(b"HTTP/1.1 200 ")


def test_s8_who_leaves_frees_a_place(running):
    for _ in range(20):
        with running.connect() as connection:
            body = picture()
            connection.sendall(head(len(body), "Content-Type: image/jpeg") + body)
    end = time.monotonic() + 10
    while running.metric("patchform_waiting") and time.monotonic() < end:
        time.sleep(0.05)
    assert running.metric("patchform_waiting") == 0
    assert running.predict().status_code == 200


def test_s3_what_is_no_http_is_told_so_in_json(running):
    with running.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        found, _ = answer_of(connection)
    assert b" 400 " in found.split(b"\r\n")[0]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "bad_request"


def test_two_requests_in_one_piece(running):
    body = picture()
    one = head(len(body), "Content-Type: image/jpeg") + body
    with running.connect() as connection:
        connection.sendall(one + one + b"POST /predict HTT")
        found, _ = answer_of(connection)
    assert found.count(b"HTTP/1.1 200") == 2
    assert found.count(b"HTTP/1.1 408") == 1


def children(process):
    """The processes that work for a server, in the order of their start."""
    found = map(int, Path(f"/proc/{process}/task/{process}/children").read_bytes().split())
    return [one for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_s9_a_model_that_is_killed_comes_back(running):
    os.kill(children(running.process.pid)[0], signal.SIGKILL)
    first = running.predict()
    assert (first.status_code, first.json()["code"], first.headers["retry-after"]) == (503, "restarting", "1")
    assert running.client.get("/live").status_code == 200
    end = time.monotonic() + 60
    while running.client.get("/ready").status_code == 503 and time.monotonic() < end:
        time.sleep(0.05)
    assert running.predict().status_code == 200
    assert running.metric("patchform_restarts_total") == 1


def test_s10_accepted_work_is_finished(folder):
    async def ask(server, told, seen):
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=server.told["address"], headers=headers, trust_env=False) as client:
            while True:
                try:
                    status = (await client.post("/predict", content=picture(), headers=JPEG)).status_code
                except httpx.TransportError:
                    status = 0
                seen.append((told.is_set(), status))
                if status != 200:
                    return

    async def trial(server):
        told, seen = asyncio.Event(), []
        tasks = [asyncio.create_task(ask(server, told, seen)) for _ in range(8)]
        await asyncio.sleep(1)
        told.set()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        return seen

    with closing(Running(folder)) as server:
        seen = asyncio.run(trial(server))
        assert {status for told, status in seen if not told} == {200}
        assert {status for told, status in seen if told} <= {200, 503}
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.said()


def test_s10_told_twice_it_ends_at_once_and_leaves_no_process(folder):
    with closing(Running(folder)) as server, server.connect() as connection:
        left = children(server.process.pid)
        connection.sendall(head(1000))  # never whole
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        begin = time.monotonic()
        assert server.end() == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 5
        assert len(left) >= 2
        assert not [one for one in left if os.path.exists(f"/proc/{one}")]


def test_s10_a_port_in_use(folder, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 5
    assert f"port {port} is in use; take another: --port 8001" in capsys.readouterr().err


def test_others_are_served_with_a_token_alone(folder, capsys, monkeypatch):
    monkeypatch.delenv("PATCHFORM_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert main(["serve", str(folder), "--host", host]) == 2
        assert f"anybody could ask a server on {host}; give --token" in capsys.readouterr().err
    Place("0.0.0.0", 0, TOKEN).check()
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Place(host, 0).check()
    with pytest.raises(UsageError, match="no header"):
        Place("127.0.0.1", 0, "two\nlines").check()


def test_no_model_no_server(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nowhere")]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_a_damaged_model_is_told_before_anything_listens(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes()[:-20] if path.suffix == ".safetensors" else path.read_bytes()
        )
    assert main(["serve", str(broken), "--port", "0"]) == 4
    assert "broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [("que=3", "did you mean queue"), ("queue=many", "queue=64"), ("queue=0", "queue=64"), ("wait=nan", "wait=0.005"),
     ("queue=-1", "queue=64"), ("body=1e99", "body=20000000"), ("xyz=3", "there are body"), ("queue", "queue=64")],
)  # fmt: skip
def test_limits(word, said):
    assert parse(["queue=3", "wait=0.5"]) == Limits(queue=3, wait=0.5)
    with pytest.raises(UsageError, match=re.escape(said)):
        parse([word])
