"""Weights and models from elsewhere: the Hugging Face hub by name, a plain address by its SHA-256. Never a pickle.

    hub:owner/name                  model.safetensors of a repository, or a model folder that `push` put there
    hub:owner/name/file@revision    that .safetensors or .npz, as it was at a branch, tag or commit
    https://...#sha256=...          a .safetensors or .npz whose sum is known
    vit/b16.augreg_in21k_ft_in1k    a row of a family's `WEIGHTS`: one of the above

What was fetched before is taken from the cache and the network is not asked; what was not is fetched when the user
names it and at no other time. The hub's files are in the hub's own cache (HF_HUB_CACHE, or HF_HOME) and may come from a
mirror of it (HF_ENDPOINT); the others are in `cache()`.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from patchform import lookup
from patchform.descriptions import WeightsFile
from patchform.errors import FolderError, ModelFileError, PatchformError, ResourceError, UsageError
from patchform.weights import files
from patchform.weights.sources import DESCRIPTION, WEIGHTS, read_description

ENDINGS = (".safetensors", ".npz")
"""Of files that are fetched: none of them can hold code."""
MODEL = (WEIGHTS, DESCRIPTION, files.MANIFEST)
"""What is pushed of a model folder, and nothing beside it."""
LARGEST = 1 << 36
"""Bytes of a plain address that are still fetched: 64 GiB."""
PATIENCE = 30.0
"""Seconds in which a server must say something."""
ELSEWHERE = "name a mirror (HF_ENDPOINT), or fetch it where there is a network: patchform weights fetch NAME"
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)((?:/[\w.+-]+)*)(?:@([\w./-]+))?")
_SUM = re.compile(r"[0-9a-f]{64}")


def locate(source: str | Path, *, say: Callable[[str], None] = lambda sentence: None) -> Path:
    """Where weights lie on this machine: a path as it is; a name of one of the kinds above, fetched if need be.

    Args:
        source: a path or name. What exists on the disk is a path.
        say: called with a sentence before the network is used.

    Raises:
        UsageError: no published weights of that name, or as `fetch`.
        PatchformError: whatever `fetch` raises.
    """
    if isinstance(source, Path) or os.path.lexists(source):
        return Path(source)
    if source.startswith(("hub:", "https:", "http:")):
        return fetch(source, say=say)
    if not lookup.is_weights_name(source):
        return Path(source)
    row = lookup.weights_file(source)
    if row.place.startswith("torchvision:"):
        raise _by_hand(source, row)
    return fetch(row.place, sha256=row.sha256, say=say)


def cached(row: WeightsFile) -> Path | None:
    """Where the file of published weights lies on this machine; None where it was not fetched. No network is used.

    Its sum is not looked at before it is read.
    """
    if row.by_hand:
        return None
    if not row.place.startswith("hub:"):
        name = urllib.parse.unquote(urllib.parse.urlsplit(row.place).path).rpartition("/")[2]
        path = cache() / (row.sha256 or "")[:16] / name
        return path if row.sha256 and path.is_file() else None
    try:
        import huggingface_hub as library
    except ImportError:
        return None
    ref = _parse(row.place, None)
    found = library.try_to_load_from_cache(ref.repository, ref.file, revision=ref.revision)
    return Path(found) if isinstance(found, str) else None


def places() -> dict[str, str]:
    """Where fetched files are kept and fetched from, and the environment variable that says otherwise, by that name."""
    found = {"PATCHFORM_CACHE": str(cache())}
    with suppress(ImportError):
        from huggingface_hub import constants

        found |= {"HF_HUB_CACHE": str(constants.HF_HUB_CACHE), "HF_ENDPOINT": str(constants.ENDPOINT)}
    return found


def fetch(
    name: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """The file or folder of a "hub:..." or "https://..." name, from the cache or the network.

    Args:
        name: see above.
        revision: of the hub; default: the one in the name, else the newest (which is the cached one if there is one).
        sha256: that the file must have, in hexadecimal; a plain address needs one, here or in the name.
        offline: True takes only what is in a cache; default: whether HF_HUB_OFFLINE is set.
        say: called with a sentence before the network is used.

    Raises:
        UsageError: not such a name, one that is not https, one without the sum it needs, or huggingface_hub is missing.
        ModelFileError: no such file, another sum, a pickle, or it is not in the cache and `offline`.
        ResourceError: the server cannot be reached, or the disk is full; nothing half fetched stays.
    """
    if offline is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    address, _, fragment = name.partition("#sha256=")
    sha256 = (sha256 or fragment).lower() or None
    if sha256 is not None and not _SUM.fullmatch(sha256):
        raise UsageError(f'"{sha256}" is no SHA-256', remedy="it has 64 hexadecimal digits")
    if not name.startswith("hub:"):
        return _plain(address, sha256, offline, say)
    ref = _parse(address, revision)
    path = _from_hub(ref, offline, say)
    if sha256 is not None and (not path.is_file() or files.sha256_of(path) != sha256):
        raise ModelFileError("not the SHA-256 that was asked for", where=address)
    return path


def push(folder: str | Path, name: str, *, public: bool = False, revision: str | None = None) -> str:
    """Put a model folder on the hub: weights, description and manifest, and nothing else of the folder.

    Args:
        folder: what `save` or a training run wrote.
        name: "owner/name"; the repository is made if need be.
        public: a new one can be read by everybody.
        revision: branch, default "main".

    Returns:
        The address of the commit.

    Raises:
        ModelFileError: the folder is not an intact model.
        UsageError: not such a name, or huggingface_hub is missing.
        ResourceError: the hub cannot be reached, or it refuses.
    """
    ref = _parse(f"hub:{name.removeprefix('hub:')}", revision)
    if ref.file or not Path(folder).is_dir():
        raise UsageError(f"{folder} cannot go to {name}", remedy="name a model folder, and owner/name")
    read_description(Path(folder))
    with _library(ref) as library:
        api = library.HfApi()
        api.create_repo(ref.repository, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=ref.repository,
            folder_path=str(folder),
            allow_patterns=list(MODEL),
            revision=ref.revision,
            commit_message="patchform model",
        )
    return str(done.commit_url)


def pull(
    name: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Copy a model folder from the hub to a new folder, once every bit is what its manifest says.

    Args:
        name: "owner/name", with "@revision" if wanted.
        folder: is made.
        revision: as in `fetch`.
        offline: as in `fetch`.
        say: as in `fetch`.

    Returns:
        The folder.

    Raises:
        FolderError: it exists already and is not empty.
        ModelFileError: what is there is not an intact model.
        PatchformError: whatever `fetch` raises.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderError("exists already", where=folder, remedy="name a new folder")
    source = fetch(f"hub:{name.removeprefix('hub:')}", revision=revision, offline=offline, say=say)
    if not source.is_dir() or not (source / DESCRIPTION).exists():
        raise ModelFileError("no model folder of patchform", where=name, remedy="use it by its name: hub:owner/name")
    read_description(source)
    with files.atomic_folder(folder) as target:
        for part in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(source / part, target / part)
    read_description(folder)
    return folder


def cache() -> Path:
    """Folder of what plain addresses gave: PATCHFORM_CACHE, else patchform/ in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PATCHFORM_CACHE") or Path(home) / "patchform")


def _by_hand(name: str, row: WeightsFile) -> ModelFileError:
    """The error for a row that is published as a pickle."""
    import torchvision

    function, _, which = row.place.removeprefix("torchvision:").partition("/")
    address = torchvision.models.get_model_weights(function)[which].url
    remedy = f"fetch {address}, then: patchform weights convert FILE --model {name} --to patchform --out DIR"
    return ModelFileError("published as a pickle, which is not fetched", where=name, remedy=remedy)


# ------------------------------------------------------------------------------------------------- Hugging Face hub


class _Ref(NamedTuple):
    """A name on the hub, parsed."""

    repository: str
    file: str
    """Empty: the usual files."""
    revision: str | None


def _parse(name: str, revision: str | None) -> _Ref:
    match = _NAME.fullmatch(name)
    parts = match[2].split("/")[1:] if match else []
    if not match or {".", ".."} & {*parts, *match[1].split("/")}:
        raise UsageError(f'"{name}" is no name on the hub', remedy="write hub:owner/name, .../file, ...@revision")
    if parts and not parts[-1].endswith(ENDINGS):
        raise ModelFileError("only .safetensors and .npz are fetched", where=name, remedy="they cannot hold code")
    return _Ref(match[1], "/".join(parts), revision or match[3])


def _from_hub(ref: _Ref, offline: bool, say: Callable[[str], None]) -> Path:
    with _library(ref) as library:
        for local in (True,) if offline else (True, False):
            if not local:
                say(f"fetching {'/'.join(filter(None, (ref.repository, ref.file)))} from the hub")
            try:
                path = _download(library, ref, local)
            except library.errors.LocalEntryNotFoundError as error:
                if not local:
                    what = f"the hub cannot be reached ({files.one_line(str(error))})"
                    raise ResourceError(what, where=ref.repository, remedy=ELSEWHERE) from error
                continue
            if path is not None:
                return path
    if offline:
        raise ModelFileError("not in the cache", where=ref.repository, remedy="unset HF_HUB_OFFLINE to fetch it")
    what = f"neither {WEIGHTS} nor a model folder"
    raise ModelFileError(what, where=ref.repository, remedy="name the file: hub:owner/name/file")


def _download(library: Any, ref: _Ref, local: bool) -> Path | None:
    """A file, the folder of a model, or None where the repository has neither."""
    options = {"revision": ref.revision, "local_files_only": local}
    if ref.file:
        return Path(library.hf_hub_download(ref.repository, ref.file, **options))
    folder = Path(library.snapshot_download(ref.repository, allow_patterns=list(MODEL), **options))
    if all((folder / part).exists() for part in MODEL):
        return folder
    weights = folder / WEIGHTS
    return weights if weights.exists() and not (folder / DESCRIPTION).exists() else None


@contextmanager
def _library(ref: _Ref) -> Iterator[Any]:
    """huggingface_hub, told to send nothing about this machine, with its errors in our words."""
    try:
        import huggingface_hub as library
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise UsageError("the hub needs huggingface_hub", remedy='pip install "patchform[hub]"') from error
    quiet, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield library
    except PatchformError:
        raise
    except errors.GatedRepoError as error:
        raise ModelFileError("closed", where=ref.repository, remedy="ask its owner, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError("no such repository, or a private one", where=ref.repository) from error
    except errors.RevisionNotFoundError as error:
        raise ModelFileError(f"no revision {ref.revision}", where=ref.repository) from error
    except errors.EntryNotFoundError as error:
        raise ModelFileError(f"no file {ref.file}", where=ref.repository) from error
    except errors.HFValidationError as error:
        raise UsageError(files.one_line(str(error)), where=ref.repository) from error
    except Exception as error:  # of the network, of the server, of the disk: each has classes of its own
        raise ResourceError(f"the hub says: {files.one_line(str(error))}", where=ref.repository) from error
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = quiet


# --------------------------------------------------------------------------------------------------- plain addresses


def _plain(address: str, sha256: str | None, offline: bool, say: Callable[[str], None]) -> Path:
    try:
        parts = urllib.parse.urlsplit(address)
        fine = parts.scheme == "https" and parts.hostname and not parts.username and address.isprintable()
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(f'"{address}" is not an https address', remedy="name a path, hub:owner/name or https://...")
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    if not name.endswith(ENDINGS) or not re.fullmatch(r"[\w.+-]+", name):
        raise ModelFileError("only .safetensors and .npz are fetched", where=address, remedy="they cannot hold code")
    if sha256 is None:
        raise UsageError(f"{address} comes without a SHA-256", remedy=f"name it: {address}#sha256=...")
    path = cache() / sha256[:16] / name
    if path.is_file() and files.sha256_of(path) == sha256:
        return path
    if offline:
        raise ModelFileError("not in the cache", where=address, remedy="unset HF_HUB_OFFLINE to fetch it")
    say(f"fetching {address}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary, open(temporary, "wb") as file:
            _receive(address, sha256, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise ResourceError(what, where=path, remedy="make room, or set PATCHFORM_CACHE") from error
    return path


def _receive(address: str, sha256: str, file: IO[bytes]) -> None:
    """Write what an address gives, and raise ModelFileError if it has not this sum or is too large."""
    sum_, size = hashlib.sha256(), 0
    for block in _blocks(address):
        size += len(block)
        if size > LARGEST:
            raise ModelFileError(f"more than {LARGEST} bytes", where=address)
        sum_.update(block)
        file.write(block)
    if sum_.hexdigest() != sha256:
        raise ModelFileError(f"its SHA-256 is {sum_.hexdigest()}, not {sha256}", where=address)


def _blocks(address: str) -> Iterator[bytes]:
    """What an address gives, with the errors of the network in our words."""
    request = urllib.request.Request(address, headers={"User-Agent": "patchform"})
    try:
        with _opener().open(request, timeout=PATIENCE) as answer:
            if int(answer.headers.get("Content-Length") or 0) > LARGEST:
                raise ModelFileError(f"more than {LARGEST} bytes", where=address)
            while block := answer.read(1 << 20):
                yield block
    except urllib.error.HTTPError as error:
        raise ModelFileError(f"the server says {error.code} {files.one_line(error.reason)}", where=address) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = files.one_line(str(getattr(error, "reason", error)))
        raise ResourceError(f"cannot be fetched ({reason})", where=address, remedy="try again") from error


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to https, and to nothing else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise ModelFileError(f"it leads to {files.one_line(newurl)}, which is not https", where=req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows https and no other way: no file:, no ftp:, no http:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _OnlyHttps(),
    ):
        opener.add_handler(handler)
    return opener
