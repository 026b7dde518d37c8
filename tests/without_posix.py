"""Command lines where nothing is that Windows lacks: python without_posix.py '[["models"], ...]'; answers in JSON.

Libraries have ways of their own on Windows: they are imported before modules and names are taken away, and keep them.
What is left out here is left out for patchform alone, and `os.name` is "nt" for it.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import signal
import sys
import types
import warnings

for library in ("torch", "torchvision.transforms.v2", "rich.progress", "rich.live", "tempfile", "subprocess", "socket"):
    importlib.import_module(library)
for library in ("torch.utils.data", "torch.distributed", "torch.export", "scipy.optimize", "matplotlib.figure", "yaml"):
    importlib.import_module(library)
for library in ("popen_spawn_posix", "queues", "synchronize", "resource_sharer", "shared_memory", "spawn"):
    importlib.import_module(f"multiprocessing.{library}")
import fcntl  # noqa: E402

MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
SIGNALS = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN", "Signals", "Handlers")
CALLS = ("signal", "getsignal", "default_int_handler", "raise_signal", "strsignal", "valid_signals")
"""All that Windows has of the module signal, but for Ctrl-Break."""
OF_POSIX = (
    *("fork", "forkpty", "register_at_fork", "killpg", "getpgid", "getpgrp", "setsid", "getuid", "geteuid", "getgid"),
    *("sysconf", "statvfs", "sched_getaffinity", "sched_setaffinity", "getloadavg", "uname", "mkfifo", "nice", "wait"),
    *(
        "O_DIRECTORY",
        "O_NONBLOCK",
        "O_NOFOLLOW",
        "O_CLOEXEC",
        "O_SYNC",
        "fchmod",
        "fchown",
        "chown",
        "pread",
        "WNOHANG",
    ),
    *(
        "posix_fallocate",
        "posix_fadvise",
        "openpty",
        "ttyname",
        "ctermid",
        "memfd_create",
        "sendfile",
        "copy_file_range",
    ),
)


def open_file(path, flags, *rest, **named):
    """Windows opens no folders."""
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, *rest, **named)


def locking(file, mode, count):
    """msvcrt.locking without waiting: another open file that has the lock is told by PermissionError."""
    assert (mode, count) == (2, 1)
    assert os.lseek(file, 0, os.SEEK_CUR) > 1 << 20
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


def hide():
    """Take away what Windows lacks, for whoever imports it from here on."""
    left = {name: value for name, value in vars(os).items() if name not in OF_POSIX}
    cut_os, cut_signal, msvcrt = types.ModuleType("os"), types.ModuleType("signal"), types.ModuleType("msvcrt")
    vars(cut_os).update(left, name="nt", open=open_file)
    vars(cut_signal).update({name: getattr(signal, name) for name in (*SIGNALS, *CALLS)})
    vars(msvcrt).update(locking=locking, LK_NBLCK=2)
    sys.modules.update({"os": cut_os, "signal": cut_signal, "msvcrt": msvcrt}, **dict.fromkeys(MODULES))


hide()  # in the loader processes too: they import this file


def answer(words):
    """A command line's exit code, what it prints, and what it says."""
    from patchform import cli

    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = cli.main(words)
    return {"code": code, "out": out.getvalue(), "said": said.getvalue()}


def every_module():
    """Import all of the package, and return those whose names of `os` and `signal` are whole, which is none."""
    import pkgutil

    import patchform

    names = [each.name for each in pkgutil.walk_packages(patchform.__path__, "patchform.")]
    loaded = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [each.__name__ for each in loaded if vars(each).get("os") is os or vars(each).get("signal") is signal]


def locked(folder):
    """What is said of a folder that is at work: by who asks, by who wants it, and once it is free."""
    from pathlib import Path

    from patchform.errors import FolderError
    from patchform.training import run, standing

    with run.lock(Path(folder)):
        asked = standing.is_locked(Path(folder))
        try:
            with run.lock(Path(folder)):
                refused = ""
        except FolderError as error:
            refused = str(error)
    return {"asked": asked, "refused": refused, "free": not standing.is_locked(Path(folder))}


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    warnings.filterwarnings("error", category=EncodingWarning, module=r"patchform\.")
    steps = {"lock": locked, "import": every_module}
    for words in json.loads(sys.argv[1]):
        step = steps.get(words[0])
        print(json.dumps(step(*words[1:]) if step else answer(words)), flush=True)
