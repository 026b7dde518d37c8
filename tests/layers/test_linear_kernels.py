"""The kernels of a CPU without gradients give what torch's own give with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchform.layers import linear
from patchform.layers.linear import Linear, conv_gelu, linear_gelu, plain

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def both(layer, x, dtype):
    """With gradients, so by torch's kernels, and without."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        wanted = layer(x)
        with torch.no_grad():
            return wanted.detach(), layer(x)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [24, 160])  # on either side of what counts as narrow
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_same_with_and_without_gradients(dtype, width, bias):
    torch.manual_seed(0)
    wanted, found = both(Linear(width, 2 * width, bias=bias), pictures(2, 3, 5, width), dtype)
    assert found.dtype == wanted.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_torch_without_the_kernels_takes_its_own(dtype, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.ops, "mkldnn", object())
        linear._has_kernels.cache_clear()
        wanted, found = both(Linear(24, 48), pictures(2, 3, 5, 24), dtype)
        assert not linear._fuses(dtype)
    linear._has_kernels.cache_clear()
    torch.testing.assert_close(found, wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def test_control_a_bias_that_is_lost_is_seen():
    layer = Linear(24, 48)
    with torch.no_grad():
        without = F.linear(x := pictures(2, 24), layer.weight)
        assert (layer(x) - without).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [*ROUNDING, torch.float64])
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_linear_gelu(dtype, gelu):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 48, dtype=dtype), pictures(2, 3, 24).to(dtype)
    wanted, other = (F.gelu(layer(x), approximate=form) for form in (gelu, "tanh" if gelu == "none" else "none"))
    found = linear_gelu(x, layer, gelu)
    torch.testing.assert_close(found, wanted, rtol=ROUNDING.get(dtype, 1e-12), atol=ROUNDING.get(dtype, 1e-12))
    if dtype != torch.bfloat16:  # control
        assert (found - other).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("dtype", [*ROUNDING, torch.float64])
def test_conv_gelu(dtype):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 6, 3, padding=1, groups=6, dtype=dtype), pictures(2, 6, 5, 7).to(dtype)
    wanted = F.gelu(conv(x))
    torch.testing.assert_close(
        conv_gelu(x, conv), wanted, rtol=ROUNDING.get(dtype, 1e-12), atol=ROUNDING.get(dtype, 1e-12)
    )
    assert (conv_gelu(x, conv) - conv(x)).abs().max() > 1e-2  # control


def test_plain():
    x = torch.ones(2)
    assert not plain(x)
    with torch.no_grad():
        assert plain(x)
        assert not plain(x.to("meta"))
