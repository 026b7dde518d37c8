"""Weights by name: from caches laid out by hand and from a stubbed https; nothing here reaches a network."""

import email.message
import hashlib
import io
import sys
import urllib.request
import urllib.response

import pytest
import torch
from reference import randomise
from safetensors.torch import save, save_file

from patchform.errors import FolderError, ModelFileError, ResourceError, UsageError
from patchform.loading import load_weights
from patchform.model import build_model
from patchform.model import save as save_model
from patchform.records import Preprocessing
from patchform.weights import files, hub
from patchform.weights.sources import read

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
WEIGHTS = {"a": torch.arange(6.0).view(2, 3)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **more):
        raise AssertionError("the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A function that puts a repository into the hub's own cache: (name, commit) -> folder of its files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def place(name, commit=COMMIT, ref="main"):
        home = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
        return folder

    return place


def nano(seed=0):
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("cat", "dog"),
        preprocessing=Preprocessing(size=(32, 32)),
    )
    return randomise(model, seed=seed)


@pytest.fixture
def run(tmp_path):
    save_model(nano(), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("data: {path: secret}\n")
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------------- the hub


def test_a_file_is_taken_from_the_cache(repository):
    save_file(WEIGHTS, repository("owner/name") / "tiny.safetensors")
    said = []
    path = hub.fetch("hub:owner/name/tiny.safetensors", say=said.append)
    assert torch.equal(read(path).tensors["a"], WEIGHTS["a"])
    assert said == []  # the network was not needed
    assert hub.locate("hub:owner/name/tiny.safetensors") == path
    sum_ = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hub.fetch("hub:owner/name/tiny.safetensors", sha256=sum_.upper()) == path
    with pytest.raises(ModelFileError, match="not the SHA-256"):
        hub.fetch("hub:owner/name/tiny.safetensors", sha256="0" * 64)


def test_a_revision_is_another_file(repository):
    for commit, ref, value in ((COMMIT, "main", 1.0), (OLDER, "v1", 2.0)):
        save_file({"a": torch.tensor([value])}, repository("owner/name", commit, ref) / "model.safetensors")

    def value(name, **more):
        return read(hub.fetch(name, offline=True, **more)).tensors["a"].item()

    assert value("hub:owner/name") == value(f"hub:owner/name@{COMMIT}") == 1
    assert value("hub:owner/name@v1") == value("hub:owner/name/model.safetensors", revision=OLDER) == 2
    with pytest.raises(ModelFileError, match="not in the cache"):
        value("hub:owner/name@v2")


def test_a_repository_is_its_model_folder_or_its_model_file(repository, run):
    plain = repository("owner/plain")
    save_file(WEIGHTS, plain / "model.safetensors")
    (plain / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert hub.fetch("hub:owner/plain", offline=True).name == "model.safetensors"
    folder = repository("owner/own")
    for name in hub.MODEL:
        (folder / name).symlink_to(run / name)  # as the hub's cache has it
    target = nano(seed=1)
    load_weights(target, "hub:owner/own")
    source = nano()
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())
    (folder / files.MANIFEST).unlink()
    with pytest.raises(ModelFileError, match="not in the cache"):
        hub.fetch("hub:owner/own", offline=True)


def test_offline_is_said_by_the_environment_too(repository, monkeypatch):
    for word in ("1", "true", "ON"):
        monkeypatch.setenv("HF_HUB_OFFLINE", word)
        with pytest.raises(ModelFileError, match="not in the cache in owner/name; unset HF_HUB_OFFLINE"):
            hub.fetch("hub:owner/name/model.safetensors")


def test_the_cache_is_asked_first_and_what_the_library_says_is_said_again(monkeypatch, tmp_path):
    library, errors = pytest.importorskip("huggingface_hub"), pytest.importorskip("huggingface_hub.errors")
    asked, said = [], []
    answers = {}

    def download(repository, file, *, revision, local_files_only):
        asked.append((repository, file, revision, local_files_only, library.constants.HF_HUB_DISABLE_TELEMETRY))
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not here")
        if isinstance(answers["now"], Exception):
            raise answers["now"]
        return answers["now"]

    monkeypatch.setattr(library, "hf_hub_download", download)
    answers["now"] = str(tmp_path / "x")
    assert hub.fetch("hub:a/b/c.npz@v1", say=said.append) == tmp_path / "x"
    assert asked == [("a/b", "c.npz", "v1", local, True) for local in (True, False)]
    assert said == ["fetching a/b/c.npz from the hub"]
    assert not library.constants.HF_HUB_DISABLE_TELEMETRY  # as it was
    for answer, kind, what in (
        (errors.LocalEntryNotFoundError("down"), ResourceError, "cannot be reached"),
        (errors.EntryNotFoundError("x"), ModelFileError, "no file c.npz in a/b"),
        (errors.HFValidationError("odd"), UsageError, "odd"),
        (TimeoutError("slow"), ResourceError, "slow"),
        (ValueError("who knows"), ResourceError, "who knows"),
    ):
        answers["now"] = answer
        with pytest.raises(kind, match=what):
            hub.fetch("hub:a/b/c.npz")
    asked.clear()
    with pytest.raises(ModelFileError, match="not in the cache"):
        hub.fetch("hub:a/b/c.npz", offline=True)
    assert [local for *_, local, _ in asked] == [True]


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"patchform\[hub\]"):
        hub.fetch("hub:owner/name")


@pytest.mark.parametrize(
    "name", ["hub:name", "hub:a/b/", "hub:a/../b.npz", "hub:a/..", "hub:a/b@", "hub:a/b c", "hub:a//b.npz", "hub:"]
)
def test_no_names(name):
    with pytest.raises(UsageError, match="no name on the hub"):
        hub.fetch(name)


@pytest.mark.parametrize(
    "name",
    ["hub:a/b/pytorch_model.bin", "hub:a/b/x.pth", "https://x.org/x.pkl#sha256=" + "0" * 64, "https://x.org/a.zip"],
)
def test_what_may_hold_code_is_not_fetched(name):
    with pytest.raises(ModelFileError, match=r"only \.safetensors and \.npz are fetched"):
        hub.fetch(name)


# --------------------------------------------------------------------------------------------------- push and pull


@pytest.fixture
def uploads(monkeypatch):
    """What was asked of the hub's API."""
    library, done = pytest.importorskip("huggingface_hub"), []

    class Api:
        def create_repo(self, name, **more):
            done.append((name, more))

        def upload_folder(self, **more):
            done.append(more)
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(library, "HfApi", Api)
    return done


def test_only_the_model_goes_up(run, uploads):
    assert hub.push(run, "owner/name") == "https://hub/commit"
    (name, repository), upload = uploads
    assert (name, repository["private"], repository["exist_ok"]) == ("owner/name", True, True)
    assert upload["repo_id"] == "owner/name"
    assert set(upload["allow_patterns"]) == {"model.safetensors", "model.json", "manifest.json"}
    hub.push(run, "hub:owner/name", public=True)
    assert uploads[2][1]["private"] is False


def test_a_damaged_model_does_not_go_up(run, uploads):
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFileError, match="not an intact model"):
        hub.push(run, "owner/name")
    for folder, name in ((run / "nowhere", "owner/name"), (run, "owner"), (run, "owner/name/x.npz")):
        with pytest.raises(UsageError):
            hub.push(folder, name)
    assert uploads == []


def test_a_pulled_model_is_the_one_that_was_pushed(repository, run, tmp_path):
    folder = repository("owner/name")
    for name in hub.MODEL:
        (folder / name).write_bytes((run / name).read_bytes())
    out = hub.pull("owner/name", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted(hub.MODEL)
    assert all((out / name).read_bytes() == (run / name).read_bytes() for name in hub.MODEL)
    with pytest.raises(FolderError):
        hub.pull("owner/name", out)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        hub.pull("owner/name", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_no_model_folder_is_not_pulled(repository, tmp_path):
    save_file(WEIGHTS, repository("owner/plain") / "model.safetensors")
    with pytest.raises(ModelFileError, match="no model folder"):
        hub.pull("owner/plain", tmp_path / "out", offline=True)


# --------------------------------------------------------------------------------------------------- plain addresses

DATA = save(WEIGHTS)
SUM = hashlib.sha256(DATA).hexdigest()


class Broken(io.BytesIO):
    """A connection that is lost."""

    def read(self, size=-1):
        if self.tell():
            raise ConnectionResetError("lost")
        return super().read(10)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Answers by address: (code, headers, body); what was asked for stands in `asked`."""
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "cache"))

    class Https(urllib.request.HTTPSHandler):
        answers, asked = {}, []

        def https_open(self, request):
            self.asked.append(request.full_url)
            code, fields, body = self.answers[request.full_url]
            headers = email.message.Message()
            for name, value in fields.items():
                headers[name] = value
            answer = urllib.response.addinfourl(body(), headers, request.full_url, code)
            answer.msg = "said so"
            return answer

    monkeypatch.setattr(urllib.request, "HTTPSHandler", Https)
    return Https


def whole():
    return io.BytesIO(DATA)


def test_an_address_with_its_sum_is_fetched_once(server, tmp_path):
    address, said = "https://x.org/files/tiny.safetensors", []
    server.answers[address] = (200, {"Content-Length": str(len(DATA))}, whole)
    path = hub.fetch(address, sha256=SUM, say=said.append)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(tmp_path / "cache")
    assert hub.locate(f"{address}#sha256={SUM}", say=said.append) == path
    assert hub.fetch(address, sha256=SUM, offline=True) == path
    assert server.asked == [address]
    assert said == [f"fetching {address}"]
    path.write_bytes(DATA[:-1] + b"\0")  # a bit of the cache is lost: fetched again
    assert hub.fetch(address, sha256=SUM).read_bytes() == DATA
    assert server.asked == [address] * 2


@pytest.mark.parametrize(
    ("code", "fields", "body", "kind", "what"),
    [
        (200, {}, lambda: io.BytesIO(DATA[:-1]), ModelFileError, "its SHA-256 is"),
        (200, {}, lambda: io.BytesIO(b""), ModelFileError, "its SHA-256 is"),
        (404, {}, whole, ModelFileError, "the server says 404"),
        (200, {"Content-Length": str(1 << 40)}, whole, ModelFileError, "more than"),
        (200, {"Content-Length": "many"}, whole, ResourceError, "cannot be fetched"),
        (200, {}, lambda: Broken(DATA), ResourceError, "lost"),
        (302, {"Location": "http://x.org/a.npz"}, whole, ModelFileError, "which is not https"),
        (302, {"Location": "file:///etc/passwd"}, whole, ModelFileError, "the server says 302"),
    ],
)
def test_what_goes_wrong_leaves_nothing(server, tmp_path, code, fields, body, kind, what):
    server.answers["https://x.org/a.safetensors"] = (code, fields, body)
    with pytest.raises(kind, match=what):
        hub.fetch("https://x.org/a.safetensors", sha256=SUM)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_body_without_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "LARGEST", 10)
    server.answers["https://x.org/a.safetensors"] = (200, {}, whole)
    with pytest.raises(ModelFileError, match="more than 10 bytes"):
        hub.fetch("https://x.org/a.safetensors", sha256=SUM)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_redirections_to_https_are_followed(server):
    server.answers["https://x.org/a.safetensors"] = (302, {"Location": "https://y.org/b"}, whole)
    server.answers["https://y.org/b"] = (200, {}, whole)
    assert hub.fetch("https://x.org/a.safetensors", sha256=SUM).name == "a.safetensors"
    assert server.asked == ["https://x.org/a.safetensors", "https://y.org/b"]


def test_a_full_disk_is_said(server, monkeypatch, tmp_path):
    server.answers["https://x.org/a.safetensors"] = (200, {}, whole)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ResourceError, match="PATCHFORM_CACHE"):
        hub.fetch("https://x.org/a.safetensors", sha256=SUM)


@pytest.mark.parametrize(
    ("address", "sum_", "what"),
    [
        ("http://x.org/a.npz", SUM, "not an https address"),
        ("https:///a.npz", SUM, "not an https address"),
        ("https://me:word@x.org/a.npz", SUM, "not an https address"),
        ("https://[x/a.npz", SUM, "not an https address"),
        ("https://x.org/a.npz", None, "without a SHA-256"),
        ("https://x.org/a.npz", "abc", "no SHA-256"),
    ],
)
def test_no_addresses(server, address, sum_, what):
    with pytest.raises(UsageError, match=what):
        hub.fetch(address, sha256=sum_)
    assert server.asked == []


def test_offline_asks_nothing(server):
    with pytest.raises(ModelFileError, match="not in the cache"):
        hub.fetch("https://x.org/a.npz", sha256=SUM, offline=True)
    assert server.asked == []


def test_the_real_opener_knows_no_other_way():
    for address in ("http://x.org/", "file:///etc/passwd", "ftp://x.org/", "data:,x"):
        with pytest.raises(urllib.error.URLError, match="unknown url type"):
            hub._opener().open(address)


# ------------------------------------------------------------------------------------------------------------ locate


def test_a_path_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "b16.dino").write_text("")
    for source in ("vit/b16.dino", "no/such.safetensors", "vit/b16.safetensors", "folder", tmp_path):
        assert str(hub.locate(source)) == str(source)


def test_a_row_is_fetched_from_its_place(repository):
    folder = repository("timm/vit_base_patch16_224.dino")
    save_file(WEIGHTS, folder / "model.safetensors")
    assert hub.locate("vit/b16.dino") == folder / "model.safetensors"
    with pytest.raises(UsageError, match=r'did you mean "vit/b16.dino"'):
        hub.locate("vit/b16.dinoo")


def test_a_row_without_a_known_sum_says_how():
    with pytest.raises(UsageError, match=r"https://.*npz#sha256=\.\.\."):
        hub.locate("vit/b16.google_augreg_in21k_ft_in1k")


def test_a_row_that_is_a_pickle_says_how():
    with pytest.raises(ModelFileError, match=r"fetch https://.*swin_t-\w+\.pth, then: patchform weights convert"):
        hub.locate("swin/t.torchvision_v1")
