"""Half types in the native kernels: every bit pattern is read right, and every result is rounded once, to even."""

import pytest
import torch

from mmext.ops import neighborhood_aggregate, neighborhood_correlate


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """Return all 65536 values of a 16-bit type as one picture."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_every_value_survives_a_product_with_one(dtype):
    value = patterns(dtype)
    out = neighborhood_aggregate(value, torch.ones(1, 1, 1, 256, 256, dtype=dtype), 1)
    assert torch.equal(out.isnan(), value.isnan())
    # The sum starts at +0, which turns -0 into +0, as it does in the reference.
    assert torch.equal(out[~out.isnan()], value[~value.isnan()])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_results_are_rounded_once_as_torch_rounds(dtype):
    value = patterns(dtype)
    for _ in range(4):
        other = value.flatten()[torch.randperm(2**16)].view_as(value)
        product = neighborhood_aggregate(value, other.view(1, 1, 1, 256, 256), 1)
        exact = value.float() * other.float()  # a float holds the product of two half numbers without rounding
        # float32 flushes no bfloat16 product that matters here: compare where the float32 product is exact.
        safe = (value.double() * other.double() == exact.double()) | exact.isnan()
        assert safe.float().mean() > 0.5
        assert torch.equal(product[safe].nan_to_num(7.0), exact.to(dtype)[safe].nan_to_num(7.0))
        logits = neighborhood_correlate(value, other, 1, 1).view_as(value)
        assert torch.equal(logits[safe].nan_to_num(7.0), exact.to(dtype)[safe].nan_to_num(7.0))
