"""Whether freed memory is kept, seen from the page faults of a fresh process: the option is one of a whole process."""

import platform
import subprocess
import sys

import pytest

from patchform.training import memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the option")

BLOCKS = """
import resource, sys
from patchform.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def blocks():
    return [bytearray(size << 20) for size in (24, 48, 96)]
blocks(), blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

STEPS = """
import os, torch
from patchform.backbones.vit import ViT
from patchform.training.memory import keep_freed_memory
assert keep_freed_memory()
torch.set_num_threads(1)
model = ViT(image_size=32, patch=4, width=48, depth=3, heads=3)
mover = torch.optim.AdamW(model.parameters())
for step in range(200):
    images = torch.rand(24 + step % 3 * 8, 3, 32, 32)  # blocks of several sizes, as a short batch makes them
    model(images).summary.square().mean().backward()
    mover.step()
    mover.zero_grad(set_to_none=True)
    if step in (20, 199):
        print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
"""


def numbers(script, *arguments):
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


@needs_glibc
def test_freed_blocks_are_not_faulted_in_again():
    pages = (24 + 48 + 96) * 256  # of 4 KiB; larger ones, where the system has them, only lower both numbers
    (kept,), (given_back,) = numbers(BLOCKS, "keep"), numbers(BLOCKS, "control")
    assert kept < pages / 100
    assert given_back > 10 * max(kept, 1)


@needs_glibc
@pytest.mark.slow
def test_memory_stays_flat_over_200_steps():
    early, late = numbers(STEPS)
    assert late <= early * 1.05


@pytest.mark.parametrize("version", [("", ""), ("musl", "1.2.5")])
def test_another_c_library_is_left_alone(monkeypatch, version):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: version)
    monkeypatch.setattr(memory.system.ctypes, "CDLL", None)  # must not be reached
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_it_never_raises(monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(memory.system.ctypes, "CDLL", broken)
    assert memory.keep_freed_memory() is False


def test_an_older_glibc_gets_what_it_takes(monkeypatch):
    calls = []

    class Library:
        @staticmethod
        def mallopt(option, value):
            calls.append((option, value))
            return int(option == -1 or value <= 32 << 20)

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(memory.system.ctypes, "CDLL", lambda name: Library)
    assert memory.keep_freed_memory() is True
    assert calls == [(-1, 2**31 - 1), (-3, 1 << 30), (-3, 32 << 20)]
