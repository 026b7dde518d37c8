"""What is asked and what is answered, row by row of the table of bad requests (S1 to S10), without processes."""

import asyncio
import io
import json
import struct
import zlib

import httpx
import pytest
from PIL import Image
from sent import picture

from patchform.prediction import Predictor, load
from patchform.serving import decoder_process, model_process
from patchform.serving.app import build
from patchform.serving.counters import Counters
from patchform.serving.dispatch import BUSY
from patchform.serving.guard import Guard
from patchform.serving.limits import Limits

JPEG = {"content-type": "image/jpeg"}
TOKEN = "let-me-in"


class Direct:
    """A dispatcher without processes."""

    def __init__(self, predictor, limits):
        self.limits, self.counters, self.ready = limits, Counters(waiting=lambda: 0), True
        self.predictor, self.card, self.full = (
            predictor,
            model_process.card_of(predictor, {"validation": "top1 0.9"}),
            False,
        )

    def refusal(self, pictures):
        return BUSY if self.full else None

    async def prepare(self, data):
        return decoder_process.prepared(data, self.predictor.preparation)

    async def answer(self, prepared, wishes):
        return model_process.answers(self.predictor, [model_process.Job(prepared, wishes)])[0]


class Asked:
    """A server that is asked without a port."""

    def __init__(self, folder, token=None, **limits):
        self.dispatcher = Direct(load(folder, device="cpu"), Limits(**limits))
        self.lines = []
        self.guard = Guard(
            build(self.dispatcher),
            token=token,
            answered=self.dispatcher.counters.answered,
            log=self.lines.append,
            busy=lambda: self.dispatcher.refusal(1),
        )

    def __call__(self, method, path, *, host="127.0.0.1:8000", **options):
        async def ask():
            transport = httpx.ASGITransport(self.guard, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def refused(self, *arguments, **options):
        """Status and code of an answer that is none; it has a message, and tells nothing of the inside."""
        found = self(*arguments, **options)
        record = found.json()
        assert set(record) == {"code", "message", "request"}
        assert record["request"] == found.headers["x-request-id"]
        assert "/" not in record["message"].replace("image/jpeg", "").replace("application/octet-stream", "").replace(
            "HTTP/", ""
        )
        return found.status_code, record["code"]


@pytest.fixture(scope="module")
def asked(folder):
    return Asked(folder)


def form(*files, name="file"):
    return [(name, ("a.jpg", content, "image/jpeg")) for content in files]


# ------------------------------------------------------------------------------------------------------ good requests


def test_the_answer_is_that_of_predict(asked, folder):
    content = picture(3)
    found = asked("POST", "/predict", content=content, headers=JPEG).json()
    wanted = Predictor(load(folder, device="cpu").model, device="cpu")(content).as_json()
    wanted.pop("file")
    assert found == wanted | {"size": [40, 50]}


def test_several_pictures_of_a_form(asked):
    single = [asked("POST", "/predict", content=picture(seed), headers=JPEG).json() for seed in (1, 2)]
    found = asked("POST", "/predict", files=form(picture(1), picture(2)))
    assert found.json() == {"answers": single}
    spoiled = asked("POST", "/predict", files=form(picture(1), b"<html>"))
    assert spoiled.status_code == 200
    assert spoiled.json()["answers"][0] == single[0]
    assert spoiled.json()["answers"][1]["error"]["code"] == "bad_picture"


def test_card_and_health(asked):
    card = asked("GET", "/card").json()
    assert card["classes"] == ["cat", "dog", "owl"]
    assert card["facts"]["validation"] == "top1 0.9"
    assert card["facts"]["input"] == "32 x 32 pixels, 3 channels"
    assert card["thresholds"] == [0.5] * 3
    assert len(set(card["colors"])) == 3
    for path in ("/live", "/ready"):
        assert asked("GET", path).status_code == 200
        assert asked("HEAD", path).status_code == 200
    asked.dispatcher.ready = False
    assert asked("GET", "/ready").status_code == 503
    assert asked("GET", "/live").status_code == 200
    asked.dispatcher.ready = True


def test_metrics_count_answers(folder):
    asked = Asked(folder)
    asked("POST", "/predict", content=picture(), headers=JPEG)
    asked("POST", "/predict", content=b"", headers=JPEG)
    text = asked("GET", "/metrics").text
    assert 'patchform_requests_total{status="200"} 1.0' in text
    assert 'patchform_requests_total{status="400"} 1.0' in text
    assert "patchform_request_seconds_count 1.0" in asked("GET", "/metrics").text  # of predictions, not of pages
    assert "cat" not in text


def test_openapi_has_examples_of_answers_and_errors(asked):
    told = asked("GET", "/openapi.json").json()
    answers = told["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "401", "413", "415", "422", "503"} <= set(answers)
    examples = answers["200"]["content"]["application/json"]["examples"]
    found = asked("POST", "/predict", content=picture(), headers=JPEG).json()
    assert set(examples["one label"]["value"]) == set(found)
    assert set(told["paths"]) == {"/predict", "/card", "/live", "/ready", "/metrics"}


def test_every_answer_says_what_a_page_may_do(asked):
    for path in ("/", "/card", "/nowhere"):
        headers = asked("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in asked("GET", "/").headers["content-security-policy"]


def test_log_lines_are_json_and_hold_no_picture(folder):
    asked = Asked(folder)
    asked("POST", "/predict?token=secret", content=picture(), headers=JPEG)
    asked("GET", "/%1b%5b31m%0a%7b%22fake%22")
    lines = [json.loads(line) for line in asked.lines]
    assert [(line["method"], line["status"]) for line in lines] == [("POST", 422), ("GET", 404)]
    assert lines[0]["path"] == "/predict"
    assert len({line["request"] for line in lines}) == 2
    assert "\n" not in asked.lines[1]
    assert "\x1b" not in asked.lines[1]


# ------------------------------------------------------------------------------------------------------- bad requests


def bomb():
    """A PNG of 60,000 x 60,000 pixels in a hundred bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif_as_jpeg():
    stream = io.BytesIO()
    Image.new("P", (20, 20)).save(stream, "GIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "wanted"),
    [
        (b"", "image/jpeg", (400, "no_picture")),
        (b"<html>404</html>", "image/jpeg", (400, "bad_picture")),
        (picture()[:600], "image/jpeg", (400, "bad_picture")),
        (picture()[:-2], "image/jpeg", (400, "bad_picture")),
        (picture(), "application/json", (415, "wrong_type")),
        (picture(), "text/html; charset=utf-8", (415, "wrong_type")),
        (picture(), "application/x-www-form-urlencoded", (415, "wrong_type")),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "application/octet-stream", (400, "bad_picture")),
    ],
)
def test_s1_no_picture(asked, content, kind, wanted):
    assert asked.refused("POST", "/predict", content=content, headers={"content-type": kind}) == wanted


def test_s1_what_it_says_itself_does_not_matter(asked):
    assert asked("POST", "/predict", content=gif_as_jpeg(), headers=JPEG).status_code == 200
    assert asked("POST", "/predict", content=picture()).status_code == 200
    packed = {**JPEG, "content-encoding": "gzip"}
    assert asked.refused("POST", "/predict", content=picture(), headers=packed) == (415, "wrong_type")


def test_s2_too_many_bytes(folder):
    asked = Asked(folder, body=10_000)
    assert asked.refused("POST", "/predict", content=bytes(10_001), headers=JPEG) == (413, "too_large")

    read = []

    async def pieces():
        for _ in range(1000):
            read.append(1)
            yield bytes(5000)

    found = asked("POST", "/predict", content=pieces(), headers=JPEG)
    assert (found.status_code, found.json()["code"]) == (413, "too_large")
    assert found.headers["connection"] == "close"
    assert asked("POST", "/predict", content=picture(), headers=JPEG).status_code == 200


def test_s2_few_large_bodies_at_once(folder):
    """Of bodies above `small` only `large` are held; a small one does not wait for them."""
    asked = Asked(folder, small=1000, large=1)
    reached, go = [], asyncio.Event()

    async def large():
        yield bytes(900)
        reached.append("begun")
        yield bytes(900)
        await go.wait()
        yield b"x"

    async def both():
        transport = httpx.ASGITransport(asked.guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            tasks = [asyncio.create_task(client.post("/predict", content=large(), headers=JPEG)) for _ in range(3)]
            small = await client.post("/predict", content=picture(size=(8, 8)), headers=JPEG)
            done = [task.done() for task in tasks]
            go.set()
            return small.status_code, done, [(await task).status_code for task in tasks]

    assert asyncio.run(both()) == (200, [False] * 3, [400] * 3)


def test_s3_bombs_and_forms_of_many_parts(asked):
    assert asked.refused("POST", "/predict", content=bomb(), headers=JPEG) == (400, "bad_picture")
    assert asked.refused("POST", "/predict", files=form(*[b"x"] * 10_000)) == (413, "too_many")
    many = b"".join(b"X-%d: a\r\n" % number for number in range(50))
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n' + many + b"\r\nx\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert asked.refused("POST", "/predict", content=body, headers=kind) == (400, "bad_form")
    assert asked.refused("GET", "/live", headers={f"x-{number}": "a" for number in range(200)}) == (
        431,
        "too_many_headers",
    )
    assert asked.refused("GET", "/live", headers={"x": "a" * 40_000}) == (431, "too_many_headers")


OTHER = b'--b\r\nContent-Disposition: form-data; name="else"\r\n\r\nx\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"", "multipart/form-data; boundary=b", "bad_form"),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b", "bad_form"),
        (b"--b\r\n", "multipart/form-data", "bad_form"),
        (b"--b\r\n", "multipart/form-data; boundary=" + "b" * 300, "bad_form"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', "multipart/form-data; boundary=b", "bad_form"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", "no_picture"),
        (OTHER, "multipart/form-data; boundary=b", "unknown_field"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", "unknown_field"),
    ],
)  # fmt: skip
def test_s3_damaged_forms(asked, body, kind, code):
    status = 422 if code == "unknown_field" else 400
    assert asked.refused("POST", "/predict", content=body, headers={"content-type": kind}) == (status, code)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.jpg", "file:///etc/passwd", "http://169.254.169.254/latest/"]
)
def test_s4_addresses_are_not_fetched(asked, address):
    for kind, wanted in (("text/uri-list", (415, "wrong_type")), ("image/jpeg", (400, "bad_picture"))):
        found = asked.refused("POST", "/predict", content=address.encode(), headers={"content-type": kind})
        assert found == wanted
    assert asked.refused("POST", "/predict", params={"url": address}, content=picture(), headers=JPEG)[0] == 422


@pytest.mark.parametrize(
    "path",
    [
        "/models/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js%00",
        "/page/index.html",
        "/" + "a" * 8000,
        "/docs",
    ],
)
def test_s5_no_path_leads_elsewhere(asked, path):
    assert asked.refused("GET", path) == (404, "no_such_place")
    assert asked.refused("POST", path, content=picture(), headers=JPEG) == (404, "no_such_place")


def test_s5_other_methods(asked):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert asked.refused(method, "/predict") == (405, "wrong_method")


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": TOKEN},
     {"authorization": f"Bearer {TOKEN}x"}, {"authorization": "Bearer \xe9"}, {"cookie": f"token={TOKEN}"}],
)  # fmt: skip
def test_s6_tokens(folder, headers):
    asked = Asked(folder, TOKEN)
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in (("POST", "/predict"), ("GET", "/card"), ("POST", f"/predict?token={TOKEN}")):
        assert asked.refused(method, path, headers=raw) == (401, "no_token")
    good = {"authorization": f"Bearer {TOKEN}"}
    assert asked("POST", "/predict", content=picture(), headers=JPEG | good, host="example.org").status_code == 200
    for path in ("/live", "/ready", "/metrics", "/"):  # these tell nothing of the model
        assert asked("GET", path).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil:80"])
def test_s6_without_a_token_this_machine_alone(asked, host):
    """A page elsewhere whose name was made to lead here does not reach the model."""
    assert asked.refused("GET", "/card", host=host) == (421, "wrong_host")
    for own in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert asked("GET", "/card", host=own).status_code == 200


@pytest.mark.parametrize(
    "query",
    ["threshold=abc", "threshold=nan", "threshold=inf", "threshold=-1", "threshold=2", "threshold=1e9", "threshold=",
     "threshold=0.1&threshold=0.2", "files=maybe", "model=other", "thresholds=0.5"],
)  # fmt: skip
def test_s7_options_that_there_are_not(asked, query):
    status, code = asked.refused("POST", f"/predict?{query}", content=picture(), headers=JPEG)
    assert (status, code) in ((422, "bad_field"), (422, "unknown_field"))


def test_s9_a_full_queue(folder):
    asked = Asked(folder)
    asked.dispatcher.full = True
    read = []

    async def body():
        read.append(1)
        yield picture()

    found = asked("POST", "/predict", content=body(), headers=JPEG)
    assert (found.status_code, found.json()["code"], found.headers["retry-after"]) == (503, "busy", "1")
    assert read == []  # nothing is read of what is not taken
    assert asked("GET", "/card").status_code == 200


def test_s9_memory_and_faults_are_of_one_picture(folder, monkeypatch):
    asked = Asked(folder)

    def fails(error):
        def decide(samples, thresholds=None):
            raise error

        monkeypatch.setattr(asked.dispatcher.predictor, "decide", decide)
        return asked.refused("POST", "/predict", content=picture(), headers=JPEG)

    assert fails(MemoryError()) == (503, "no_memory")
    assert fails(RuntimeError("DefaultCPUAllocator: can't allocate memory")) == (503, "no_memory")
    assert fails(RuntimeError("/secret/path: kernel")) == (500, "model_failed")


def test_a_bug_is_told_in_the_log_alone(folder, monkeypatch):
    asked = Asked(folder)

    async def breaks(data):
        raise KeyError("/secret/path")

    monkeypatch.setattr(asked.dispatcher, "prepare", breaks)
    assert asked.refused("POST", "/predict", content=picture(), headers=JPEG) == (500, "bug")
    assert "/secret/path" in json.loads(asked.lines[-1])["error"]


def test_s10_what_comes_at_the_end_is_refused(folder):
    asked = Asked(folder)
    asked.guard.stopping = True
    found = asked("POST", "/predict", content=picture(), headers=JPEG)
    assert (found.status_code, found.json()["code"], found.headers["connection"]) == (503, "stopping", "close")
    assert found.headers["retry-after"] == "1"
    assert asked("GET", "/ready").status_code == 503
    assert asked("GET", "/live").status_code == 200
