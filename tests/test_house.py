"""The rules of the house (docs/house.md), each with a control: a planted file that must be found."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "patchform"
STACK = ROOT / "docs" / "stack.md"

FLOORS = (
    (
        *("errors", "schema", "descriptions", "records", "settings", "resources", "signals", "system"),
        *("lookup", "own_parts", "foreign_names", "model_table"),
    ),
    ("geometry", "device", "distributed", "markup"),
    ("outputs",),
    ("layers", "metrics", "weights", "drawing"),
    ("backbones", "necks", "heads", "data", "page"),
    ("published",),
    ("tasks",),
    ("model",),
    ("pretraining",),
    ("adaptation",),
    ("loading",),
    ("published_models",),
    ("runtime",),
    ("inference",),
    ("timeline",),
    ("evaluation", "prediction", "probing", "doctor", "loggers"),
    ("training", "inspect", "export", "bench", "serving"),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__", "__init__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
APART = ("backbones", "heads", "pretraining", "tasks", "data/formats", "loggers")
PAPERS_SAY_SO = {
    "backbones/hybrid": {"backbones/resnet", "backbones/vit"},
    "backbones/botnet": {"backbones/resnet"},
    "backbones/axial": {"backbones/resnet"},
    "backbones/stand_alone": {"backbones/resnet"},
    "backbones/vivit": {"backbones/vit"},
    "backbones/timesformer": {"backbones/vit"},
    "heads/detr_masks": {"heads/detr"},
    "heads/temporal_encoder": {"heads/linear"},
    "tasks/video_classification": {"tasks/classification"},
    "tasks/instance_segmentation": {"tasks/detection"},
    "heads/mask_rcnn": {"heads/faster_rcnn"},
}
NOT_ROOMS = {"utils", "util", "common", "core", "misc", "engine", "helpers"}
LINES = 450
FUNCTION_LINES = 60
LONGER = {"training/loop:train": 65}  # a run from top to bottom; 24 lines say what it raises
PARAMETERS = 8
ARGUMENTS, FREE_ARGUMENTS = 12, {"self", "in_channels", "image_size"}
FORBIDDEN_IMPORTS = {"pickle", "subprocess", "importlib", "marshal", "shelve", "dill", "joblib"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "torch.hub.load", "hub.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "numpy.load"),
}
FORBIDDEN_METHODS = {"extractall"}
# a closed registry, a closed table, the file that the user names for it
ALLOWED = {("lookup", "importlib"), ("__init__", "importlib"), ("weights/pickles", "torch.load")}
KERNELS, ONE_DOOR = ("scaled_dot_product_attention", "flex_attention"), "layers/attention"
# in pieces, so that this file does not name them itself
OUTSIDE = re.compile(
    r"(?<![\w.])/(?:"
    + "|".join(("work", "farm", "root", "home", r"tmp/\w", "opt/" + "pypi", "opt/" + "wheels"))
    + r")/"
    r"|" + "|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org", "index" + "[-_]url"))
)

_SIGNALS = {
    *("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGKILL", "SIGBUS", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGSTOP"),
    *("pthread_sigmask", "pthread_kill", "sigtimedwait", "sigwait", "alarm", "setitimer", "pause", "SIG_BLOCK"),
}
_OF_OS = {
    *(
        "fork",
        "register_at_fork",
        "killpg",
        "getpgid",
        "setsid",
        "getuid",
        "geteuid",
        "getgid",
        "uname",
        "nice",
        "wait",
    ),
    *("sysconf", "statvfs", "sched_getaffinity", "sched_setaffinity", "getloadavg", "mkfifo", "chown", "pread"),
    *("O_DIRECTORY", "O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_RDONLY"),  # the last: folders are opened by it
}
OF_SYSTEM = {
    *("fcntl", "grp", "pty", "pwd", "resource", "shlex", "syslog", "termios", "tty", "msvcrt", "winreg", "ctypes"),
    *("os.name", "sys.platform"),
    *(f"os.{name}" for name in _OF_OS),
}
OF_SIGNALS = {f"signal.{name}" for name in _SIGNALS}
OF_SOME_SYSTEMS = OF_SYSTEM | OF_SIGNALS
OWNS_SYSTEMS = {"system": OF_SYSTEM, "signals": OF_SIGNALS, "bench/machine": {"sys.platform"}}

TARGETS = {"Label", "Regions", "Instances", "Embedding"}
TASKS = {
    *("classification", "detection", "instance_segmentation", "pretraining"),
    *("semantic_segmentation", "video_classification"),
}
NOT_OF_TASKS = {"commands/demo"}  # its demos have names of their own, some of which tasks have too
TRACED = ("backbones", "heads", "layers", "geometry")
NEVER_TRACED = {"geometry/masks", "layers/fitting"}  # masks of ground truth; weights on their way into a model

Rule = Callable[[Path], list[str]]


def sources(package: Path) -> dict[str, Path]:
    """ "layers/attention" -> its file."""
    return {path.relative_to(package).with_suffix("").as_posix(): path for path in sorted(package.rglob("*.py"))}


def parsed(package: Path) -> Iterator[tuple[str, ast.Module]]:
    for name, path in sources(package).items():
        yield name, ast.parse(path.read_text(), str(path))


def imports(package: Path) -> dict[str, set[str]]:
    """Modules of the package that each module imports, wherever in the file and in whichever form."""
    known = sources(package)

    def module(parts: list[str]) -> str:
        """The file that "patchform.layers.attention.attend" or "patchform.layers" lives in."""
        for end in range(len(parts), 0, -1):
            path = "/".join(parts[1:end])
            for candidate in (path, f"{path}/__init__".lstrip("/")):
                if candidate in known:
                    return candidate
        raise AssertionError(f"no such module: {'.'.join(parts)}")

    found: dict[str, set[str]] = {}
    for name, tree in parsed(package):
        here = ["patchform", *name.split("/")]
        targets = found.setdefault(name, set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                dotted = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = here[: len(here) - node.level] if node.level else []
                base = base + (node.module.split(".") if node.module else [])
                dotted = [[*base, alias.name] for alias in node.names]
            else:
                continue
            targets |= {module(parts) for parts in dotted if parts[0] == "patchform" and parts[-1] != "__version__"}
        targets.discard(name)
    return found


def room(name: str) -> str:
    return name.split("/")[0]


# ---------------------------------------------------------------------------------------------------------- the rules


def only_down(package: Path) -> list[str]:
    faults = [f"{name}: a room without a floor" for name in sources(package) if room(name) not in FLOOR]
    for name, targets in imports(package).items():
        for target in sorted(targets):
            mine, theirs = FLOOR.get(room(name), 99), FLOOR.get(room(target), 99)
            if room(name) != room(target) and (theirs > mine or theirs == mine > 0):
                faults.append(f"{name} imports {target}: not down")
    return faults


def siblings_apart(package: Path) -> list[str]:
    return [
        f"{name} imports its sibling {target}"
        for name, targets in imports(package).items()
        for target in sorted(targets)
        for folder in APART
        if Path(name).parent == Path(target).parent == Path(folder)
        and Path(target).name not in ("base", "__init__")
        and target not in PAPERS_SAY_SO.get(name, ())
    ]


def no_cycles(package: Path) -> list[str]:
    graph, done, faults = imports(package), set(), []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            faults.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    return faults


def rooms_are_named(package: Path) -> list[str]:
    return [name for name in sources(package) if NOT_ROOMS & set(name.split("/"))]


def files_are_short(package: Path) -> list[str]:
    counts = {name: len(path.read_text().splitlines()) for name, path in sources(package).items()}
    return [f"{name}: {count} lines" for name, count in counts.items() if count > LINES]


def constructors_are_small(package: Path) -> list[str]:
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                number = len([argument for argument in arguments if argument not in FREE_ARGUMENTS])
                if number > ARGUMENTS:
                    faults.append(f"{name}:{node.lineno}: {number} arguments")
    return faults


def functions_are_short(package: Path) -> list[str]:
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGER.get(f"{name}:{node.name}", FUNCTION_LINES):
                    faults.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    return faults


def functions_take_few_arguments(package: Path) -> list[str]:
    """Constructors have a limit of their own."""
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                number = len([argument for argument in arguments if argument not in ("self", "cls")])
                if number > PARAMETERS:
                    faults.append(f"{name}:{node.lineno}: {node.name} takes {number} arguments")
    return faults


def nothing_runs_files(package: Path) -> list[str]:
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used = {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_IMPORTS
            elif isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                used = {(node.module or "").split(".")[0]} & FORBIDDEN_IMPORTS | full & FORBIDDEN_CALLS
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                used = {called} & FORBIDDEN_CALLS | {called.rpartition(".")[2]} & FORBIDDEN_METHODS
            else:
                continue
            faults += [f"{name}:{node.lineno}: {word}" for word in sorted(used) if (name, word) not in ALLOWED]
    return faults


def one_door_to_kernels(package: Path) -> list[str]:
    return [
        f"{name} names {kernel}"
        for name, path in sources(package).items()
        if name != ONE_DOOR
        for kernel in KERNELS
        if kernel in path.read_text()
    ]


def systems_differ_in_one_place(package: Path) -> list[str]:
    """Modules that some systems lack, and names of `os` and `signal` that Windows lacks, stay where they are owned."""
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used = {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute):
                used = {ast.unparse(node)}
            else:
                continue
            owned = used & (OF_SOME_SYSTEMS if name not in OWNS_SYSTEMS else OF_SOME_SYSTEMS - OWNS_SYSTEMS[name])
            faults += [f"{name}:{node.lineno}: {word}" for word in sorted(owned)]
    return faults


def text_has_an_encoding(package: Path) -> list[str]:
    """Without one it is the system's, which is not UTF-8 on Windows before Python 3.15."""
    faults = []
    for name, tree in parsed(package):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
                continue
            called, method = ast.unparse(node.func), isinstance(node.func, ast.Attribute)
            modes = [arg.value for arg in node.args[not method :] if isinstance(arg, ast.Constant)]
            modes += [getattr(word.value, "value", None) for word in node.keywords if word.arg == "mode"]
            binary = any("b" in mode for mode in modes if isinstance(mode, str))
            is_mode = bool(modes) and all(re.fullmatch("[rwxabt+]+", str(mode)) for mode in modes)
            opens = called == "open" or (called.endswith(".open") and is_mode and called != "av.open")
            if (opens and not binary) or (method and node.func.attr in ("read_text", "write_text")):
                faults.append(f"{name}:{node.lineno}: {called}")
    return faults


def private_calls_are_listed(package: Path) -> list[str]:
    """What is not public in torch may change with any version: docs/stack.md lists it."""
    known, faults = set(re.findall(r"`(torch[\w.]*)`", STACK.read_text(encoding="utf-8"))), []
    for name, tree in parsed(package):
        inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                used = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and node not in inner:
                used = [ast.unparse(node)]
            else:
                continue
            private = [word for word in used if re.fullmatch(r"torch\.([\w.]+\.)?_[a-z]\w*[\w.]*", word)]
            faults += [f"{name}:{node.lineno}: {word}" for word in private if not _listed(word, known)]
    return faults


def _listed(word: str, known: set[str]) -> bool:
    return any(word == one or word.startswith((f"{one}.", f"{one}_")) for one in known)


def no_dispatch(package: Path) -> list[str]:
    """Nothing asks which task it is, what type a target has, what is in a listing or what a data format can do.

    What is in a listing may be asked where listings are made and read, in `data/`.
    """
    faults = set()
    constants = {word for _, tree in parsed(package) for word in _named_after_tasks(tree)}
    for name, tree in parsed(package):
        if name.startswith("tasks/") or name in NOT_OF_TASKS:
            continue
        conditions = set() if name.startswith("data/") else _in_conditions(tree)  # listings are data's own
        for node in ast.walk(tree):
            asks = _asks_type(node) or _asks_task(node, constants) or _asks_format(node)
            if asks or (node in conditions and _asks_listing(node)):
                faults.add(f"{name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:80]}")
    return sorted(faults)


def _last(node: ast.AST) -> str:
    """ "task" of recipe.task; of a name itself."""
    return getattr(node, "attr", getattr(node, "id", ""))


def _named_after_tasks(tree: ast.Module) -> Iterator[str]:
    """Constants that hold the name of a task."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets:
            names, values = node.targets[0], node.value
            pairs = zip(getattr(names, "elts", [names]), getattr(values, "elts", [values]))
            yield from (_last(one) for one, value in pairs if getattr(value, "value", None) in TASKS)


def _asks_type(node: ast.AST) -> bool:
    """isinstance(x, Label), type(x) is Label, task.target is Label."""
    if isinstance(node, ast.Call) and _last(node.func) in ("isinstance", "issubclass") and len(node.args) == 2:
        return any(_last(part) in TARGETS for part in ast.walk(node.args[1]))
    if isinstance(node, ast.Compare):
        return any(_last(side) in TARGETS for side in (node.left, *node.comparators))
    return False


def _asks_task(node: ast.AST, constants: set[str]) -> bool:
    """task == "detection", task in ("a", "b"), task == UNLABELLED, {"detection": ..., "classification": ...}."""
    if isinstance(node, ast.Dict):
        return len([key for key in node.keys if isinstance(key, ast.Constant) and key.value in TASKS]) > 1
    if not isinstance(node, ast.Compare):
        return False
    sides = [part for side in (node.left, *node.comparators) for part in getattr(side, "elts", [side])]
    words = [side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)]
    words += [_last(side) for side in sides if _last(side) in constants]
    about = any(re.fullmatch(r"(.*_)?task(_?name)?", _last(side)) for side in sides)
    return bool(words) and (about or any(word in TASKS or word in constants for word in words))


def _asks_format(node: ast.AST) -> bool:
    """hasattr(format_, ...), getattr(module, ...)."""
    asks = isinstance(node, ast.Call) and _last(node.func) in ("hasattr", "getattr") and node.args
    return bool(asks) and bool(re.fullmatch(r"(.*_)?(format|module)_?", _last(node.args[0])))


def _asks_listing(node: ast.AST) -> bool:
    """listing.objects, self.listing.coding, splits.train.videos."""
    of = isinstance(node, ast.Attribute) and node.attr in ("videos", "objects", "coding", "mask_codes")
    return of and bool(re.fullmatch(r".*(listing|train|validation|held_out)", _last(node.value)))


def _in_conditions(tree: ast.Module) -> set[ast.AST]:
    """Nodes that something hangs on."""
    tests: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            tests.append(node.test)
        elif isinstance(node, ast.comprehension):
            tests += node.ifs
        elif isinstance(node, ast.BoolOp | ast.Compare):
            tests.append(node)
    return {part for test in tests for part in ast.walk(test)}


def lengths_stay_symbols(package: Path) -> list[str]:
    """What makes a number of a length, or rounds up by a minus: a graph is then for the sizes of its example alone, or
    wrong in ONNX, whose division is towards zero. Ask for `x.shape[0]` and `grids.ceil_div`.

    Tensors are arguments and attributes that are annotated so, `nn.Parameter`s, and what their methods and torch give.
    """
    faults = []
    for name, tree in parsed(package):
        if room(name) not in TRACED or name in NEVER_TRACED:
            continue
        attributes = _tensor_attributes(tree)
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                tensors, lengths = _tensors_and_lengths(function, attributes)
                for node in ast.walk(function):
                    if _loses_a_length(node, tensors, lengths):
                        faults.append(f"{name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:80]}")
    return sorted(set(faults))


def _tensor_attributes(tree: ast.Module) -> set[str]:
    """ "self.x" of x: Tensor in a class, or self.x = nn.Parameter(...)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            found |= {f"self.{_last(item.target)}" for item in fields if ast.unparse(item.annotation) == "Tensor"}
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("nn.Parameter("):
            found |= {ast.unparse(target) for target in node.targets}
    return found


def _tensors_and_lengths(function: ast.FunctionDef, attributes: set[str]) -> tuple[set[str], set[str]]:
    """Expressions that are tensors, and names of lengths of theirs."""
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    kinds = {one.arg: ast.unparse(one.annotation) for one in arguments if one.annotation is not None}
    tensors = attributes | {name for name, kind in kinds.items() if kind in ("Tensor", "Tensor | None")}
    lengths: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            names = {ast.unparse(part) for target in node.targets for part in getattr(target, "elts", [target])}
            if _is_tensor(node.value, tensors) and len(names) == 1:
                tensors |= names
            elif ".shape" in ast.unparse(node.value):
                lengths |= names
    return tensors, lengths


def _is_tensor(value: ast.AST, tensors: set[str]) -> bool:
    """torch.f(...), F.f(...), x.f(...) of a tensor x, but for methods that give numbers."""
    called = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
    if not called or value.func.attr in ("tolist", "item", "dim", "numel", "size", "split", "chunk", "unbind"):
        return False
    of = ast.unparse(value.func.value)
    return of in tensors or of in ("torch", "F") or _is_tensor(value.func.value, tensors)


def _loses_a_length(node: ast.AST, tensors: set[str], lengths: set[str]) -> bool:
    """len(x) of a tensor, int(x.shape[0]) and int(height) of a length, -a // b, -a % b."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.func, ast.Name):
        of = ast.unparse(node.args[0])
        tensor = of in tensors or _is_tensor(node.args[0], tensors)
        names = {ast.unparse(part) for part in ast.walk(node.args[0])}
        length = ".shape" in of or bool(names & lengths)
        return tensor if node.func.id == "len" else length and node.func.id == "int"
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.FloorDiv | ast.Mod):
        return False
    return isinstance(node.left, ast.UnaryOp) and isinstance(node.left.op, ast.USub)


def names_nothing_outside(root: Path) -> list[str]:
    """No path of a machine and no address of a package registry in any file that is or will be tracked."""
    faults = []
    for name in tracked(root):
        try:
            text = (root / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):  # pictures; files just deleted
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if found := OUTSIDE.search(line):
                faults.append(f"{name}:{number}: {found.group()}")
    return faults


def tracked(root: Path) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


# ----------------------------------------------------------------------------------------- the house, and the controls


@pytest.mark.parametrize(
    "rule",
    [
        only_down,
        siblings_apart,
        no_cycles,
        rooms_are_named,
        files_are_short,
        constructors_are_small,
        functions_are_short,
        functions_take_few_arguments,
        nothing_runs_files,
        one_door_to_kernels,
        systems_differ_in_one_place,
        text_has_an_encoding,
        private_calls_are_listed,
        no_dispatch,
        lengths_stay_symbols,
    ],
)
def test_the_package(rule: Rule) -> None:
    assert rule(PACKAGE) == []


def test_the_repository() -> None:
    assert names_nothing_outside(ROOT) == []


LONG = "x = 1\n" * (LINES + 1)
MANY = "class A:\n    def __init__(self, " + ", ".join(f"a{i}" for i in range(ARGUMENTS + 1)) + "): ...\n"
CONTROLS: list[tuple[Rule, dict[str, str]]] = [
    (only_down, {"layers/a.py": "from patchform.heads import b\n", "heads/b.py": ""}),
    (only_down, {"layers/a.py": "from patchform import model\n", "model.py": ""}),
    (only_down, {"layers/a.py": "from ..heads.b import c\n", "heads/b.py": "c = 1\n"}),
    (only_down, {"layers/a.py": "def f():\n    import patchform.heads.b\n", "heads/b.py": ""}),
    (only_down, {"heads/a.py": "import patchform.data.b as b\n", "data/b.py": ""}),
    (only_down, {"evaluation.py": "import patchform\n"}),
    (only_down, {"attic/a.py": ""}),
    (siblings_apart, {"backbones/a.py": "from patchform.backbones.b import c\n", "backbones/b.py": "c = 1\n"}),
    (siblings_apart, {"data/formats/a.py": "from . import b\n", "data/formats/b.py": ""}),
    (siblings_apart, {"backbones/botnet.py": "from patchform.backbones import vit\n", "backbones/vit.py": ""}),
    (no_cycles, {"layers/a.py": "from . import b\n", "layers/b.py": "def f():\n    from patchform.layers import a\n"}),
    (rooms_are_named, {"utils.py": ""}),
    (rooms_are_named, {"layers/helpers/a.py": ""}),
    (files_are_short, {"heads/a.py": LONG}),
    (constructors_are_small, {"heads/a.py": MANY}),
    (functions_are_short, {"heads/a.py": "def f():\n" + "    x = 1\n" * FUNCTION_LINES}),
    (functions_take_few_arguments, {"heads/a.py": MANY.replace("__init__", "forward")}),
    (nothing_runs_files, {"data/a.py": "import pickle\n"}),
    (nothing_runs_files, {"data/a.py": "from importlib import import_module\n"}),
    (nothing_runs_files, {"data/a.py": "def f(p):\n    import torch\n    return torch.load(p, weights_only=True)\n"}),
    (nothing_runs_files, {"data/a.py": "from torch import load\n"}),
    (nothing_runs_files, {"data/a.py": "import yaml\nx = yaml.load('', Loader=yaml.SafeLoader)\n"}),
    (nothing_runs_files, {"data/a.py": "x = eval('1')\n"}),
    (nothing_runs_files, {"data/a.py": "def f(t):\n    t.extractall('.')\n"}),
    (nothing_runs_files, {"data/a.py": "import torch\nm = torch.hub.load('a', 'b')\n"}),
    (one_door_to_kernels, {"heads/a.py": "from torch.nn.functional import scaled_dot_product_attention\n"}),
    (systems_differ_in_one_place, {"data/a.py": "def f():\n    import fcntl\n"}),
    (systems_differ_in_one_place, {"data/a.py": "from signal import SIGKILL\n"}),
    (systems_differ_in_one_place, {"data/a.py": "import os\nos.register_at_fork(before=f)\n"}),
    (systems_differ_in_one_place, {"system.py": "import signal\nx = signal.SIGHUP\n"}),
    (systems_differ_in_one_place, {"data/a.py": "from shlex import quote\n"}),
    (text_has_an_encoding, {"data/a.py": "def f(p):\n    return p.read_text()\n"}),
    (text_has_an_encoding, {"data/a.py": "def f(p):\n    return open(p)\n"}),
    (text_has_an_encoding, {"data/a.py": "def f(p):\n    return open(p, mode='w')\n"}),
    (text_has_an_encoding, {"data/a.py": "def f(p):\n    return (p / 'a').open('a')\n"}),
    (private_calls_are_listed, {"a.py": "import torch\nx = torch._C._nothing(1)\n"}),
    (private_calls_are_listed, {"a.py": "from torch.nn import _reduction\n"}),
    (no_dispatch, {"a.py": "def f(x):\n    return isinstance(x, Label)\n"}),
    (no_dispatch, {"a.py": "def f(x):\n    return isinstance(x, (int, records.Regions))\n"}),
    (no_dispatch, {"a.py": "def f(x):\n    return type(x) is Instances\n"}),
    (no_dispatch, {"a.py": "def f(task):\n    return task.target is Embedding\n"}),
    (no_dispatch, {"a.py": "def f(recipe):\n    return recipe.task == 'counting'\n"}),
    (no_dispatch, {"a.py": "def f(task):\n    return task in ('a', 'b')\n"}),
    (no_dispatch, {"a.py": "def f(task_name):\n    return 'a' != task_name\n"}),
    (no_dispatch, {"a.py": "def f(found):\n    return found[-1] == 'classification'\n"}),
    (no_dispatch, {"a.py": "VIDEO, N = 'video_classification', 8\n", "b.py": "def f(x):\n    return x == VIDEO\n"}),
    (no_dispatch, {"a.py": "CLASSES = {'classification': 1000, 'detection': 80}\n"}),
    (no_dispatch, {"a.py": "def f(format_):\n    return hasattr(format_, 'parts')\n"}),
    (no_dispatch, {"data/a.py": "def f(module):\n    return getattr(module, 'INSIDE', ())\n"}),
    (no_dispatch, {"a.py": "def f(listing):\n    return 1 if listing.objects else 2\n"}),
    (no_dispatch, {"a.py": "def f(self):\n    if self.listing.videos:\n        return 1\n"}),
    (lengths_stay_symbols, {"heads/a.py": "def f(x: Tensor):\n    return len(x)\n"}),
    (lengths_stay_symbols, {"heads/a.py": "def f(x: Tensor | None):\n    y = x.flatten(1)\n    return len(y)\n"}),
    (lengths_stay_symbols, {"heads/a.py": "def f(n):\n    y = torch.arange(n)\n    return len(y)\n"}),
    (lengths_stay_symbols, {"heads/a.py": "def f(x: Tensor):\n    return len(x.flatten(1).view(-1))\n"}),
    (lengths_stay_symbols, {"layers/a.py": "class A:\n    t: Tensor\n    def f(self):\n        return len(self.t)\n"}),
    (
        lengths_stay_symbols,
        {
            "layers/a.py": "class A:\n    def __init__(self):\n        self.t = nn.Parameter(x)\n"
            "    def f(self):\n        return len(self.t)\n"
        },
    ),
    (lengths_stay_symbols, {"geometry/a.py": "def f(x):\n    return int(x.shape[0] / 2)\n"}),
    (lengths_stay_symbols, {"backbones/a.py": "def f(x):\n    h, w = x.shape[-2:]\n    return int(h)\n"}),
    (lengths_stay_symbols, {"geometry/a.py": "def f(a, b):\n    return -(-a // b)\n"}),
    (lengths_stay_symbols, {"geometry/a.py": "def f(a, b):\n    return -a.shape[0] % b\n"}),
    (names_nothing_outside, {"notes.md": "see /wo" + "rk/main\n"}),
    (names_nothing_outside, {"setup.cfg": "index-" + "url = https://x\n"}),
]
FINE: list[tuple[Rule, dict[str, str]]] = [
    (only_down, {"heads/a.py": "from patchform.layers import b\n", "layers/b.py": ""}),
    (only_down, {"cli.py": "from patchform import __version__\n"}),
    (siblings_apart, {"backbones/a.py": "from .base import c\n", "backbones/base.py": "c = 1\n"}),
    (siblings_apart, {"backbones/botnet.py": "from . import resnet\n", "backbones/resnet.py": ""}),
    (constructors_are_small, {"heads/a.py": MANY.replace("a0", "in_channels")}),
    (functions_are_short, {"training/loop.py": "def train():\n" + "    x = 1\n" * FUNCTION_LINES}),
    (functions_take_few_arguments, {"heads/a.py": MANY}),
    (nothing_runs_files, {"lookup.py": "import importlib\n", "data/a.py": "import re\nx = re.compile('a')\n"}),
    (nothing_runs_files, {"weights/pickles.py": "import torch\nx = torch.load('a', weights_only=True)\n"}),
    (systems_differ_in_one_place, {"system.py": "import fcntl, os\nx = os.sysconf\n", "a.py": "import os, signal\n"}),
    (text_has_an_encoding, {"a.py": "def f(p):\n    return open(p, 'rb'), p.read_text(encoding='utf-8')\n"}),
    (text_has_an_encoding, {"a.py": "def f(p):\n    return Image.open(p), os.open(p, 0), p.open('wb')\n"}),
    (private_calls_are_listed, {"a.py": "import torch\nx = torch.ops.aten.gelu_(torch._foreach_norm(y))\n"}),
    (no_dispatch, {"tasks/a.py": "def f(x):\n    return isinstance(x, Label)\n"}),
    (no_dispatch, {"a.py": "def f(x, head, task):\n    return isinstance(x, Tensor) and task in head.tasks\n"}),
    (no_dispatch, {"data/a.py": "def f(listing):\n    return 1 if listing.objects else 2\n"}),
    (no_dispatch, {"a.py": "def f():\n    return find_task('detection').metric(Label)\n"}),
    (
        lengths_stay_symbols,
        {"heads/a.py": "def f(x: Sequence[Tensor], y: Tensor):\n    return len(x) + len(y.tolist())\n"},
    ),
    (lengths_stay_symbols, {"layers/a.py": "def f(x: Tensor, n: float):\n    return x.shape[0] + int(n) - 2 // n\n"}),
    (lengths_stay_symbols, {"tasks/a.py": "def f(x: Tensor):\n    return len(x)\n"}),
    (names_nothing_outside, {"notes.md": "a/wo" + "rk/b and https://example.org/home/\n"}),
]


def plant(folder: Path, files: dict[str, str]) -> Path:
    (folder / "__init__.py").write_text("")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(("rule", "files"), CONTROLS)
def test_controls_are_found(rule: Rule, files: dict[str, str], tmp_path: Path) -> None:
    assert len(rule(plant(tmp_path, files))) == 1


@pytest.mark.parametrize(("rule", "files"), FINE)
def test_what_is_fine_passes(rule: Rule, files: dict[str, str], tmp_path: Path) -> None:
    assert rule(plant(tmp_path, files)) == []
