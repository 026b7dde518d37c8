"""What a machine is fast in, told by what torch says of it."""

import platform

import pytest
import torch

from patchform.device import autocast, fast_precision, slow_precision
from patchform.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    """Sets what the processor has, what torch uses of it, and what the environment takes away."""

    def have(*units, machine="x86_64", level="AVX512", most=None):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        if most:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
        return fast_precision(CPU).precision

    return have


def test_a_processor_computes_in_bfloat16_where_it_has_units_for_it(processor):
    assert processor("avx512_bf16", "amx_bf16") == "bfloat16"
    assert processor("amx_bf16") == "bfloat16"
    assert processor("avx2") == "float32"
    assert processor("avx512_f") == "float32"
    assert processor("bf16", machine="aarch64", level="SVE256") == "bfloat16"
    assert processor("bf16", machine="x86_64") == "float32"
    assert processor(machine="arm64", level="DEFAULT") == "float32"


@pytest.mark.parametrize("level", ["DEFAULT", "AVX2"])
def test_what_torch_may_not_use_does_not_count(processor, level):
    assert processor("avx512_bf16", "amx_bf16", level=level) == "float32"


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        ("AVX2", "float32"),
        ("avx512_core", "float32"),
        ("AVX512_CORE_VNNI", "float32"),
        ("AVX512_CORE_BF16", "bfloat16"),
        ("avx512_core_amx", "bfloat16"),
        ("AVX10_1_512", "bfloat16"),
        ("DEFAULT", "bfloat16"),
        ("ALL", "bfloat16"),
    ],
)
def test_what_onednn_may_not_use_does_not_count(processor, most, wanted):
    assert processor("avx512_bf16", "amx_bf16", most=most) == wanted


@pytest.mark.parametrize(
    ("bfloat16", "capability", "wanted"),
    [(True, (9, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (7, 0), "float16"), (False, (6, 1), "float32")],
)
def test_a_gpu_computes_in_what_it_has_units_for(monkeypatch, bfloat16, capability, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert fast_precision(CUDA).precision == wanted
    assert (slow_precision(CUDA, "bfloat16") is None) == bfloat16
    assert (slow_precision(CUDA, "float16") is None) == (wanted != "float32")
    assert slow_precision(CUDA, "float32") is None


def test_that_a_processor_is_slow_is_said(processor):
    processor("avx2", level="AVX2")
    assert slow_precision(CPU, "bfloat16") == "bfloat16 is slow here: this processor has no units for bfloat16"
    assert "float16 is slow on a processor" in slow_precision(CPU, "float16")
    processor("amx_bf16")
    assert slow_precision(CPU, "bfloat16") is None
    assert slow_precision(CPU, "float32") is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_layers_compute_in_the_precision(precision):
    layer, x = torch.nn.Linear(3, 4), torch.ones(2, 3)
    with autocast("cpu", precision):
        assert layer(x).dtype == getattr(torch, precision)
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("precision", ["auto", "bf16", "half", "FLOAT16", ""])
def test_a_precision_that_is_none_is_refused(precision):
    with pytest.raises(UsageError, match="there are float32, bfloat16, float16"):
        autocast("cpu", precision)
