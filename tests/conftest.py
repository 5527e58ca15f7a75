"""Every test starts from the same seed, on one thread, and outside of any host's scope."""

import pytest
import torch
from mmengine.registry import DefaultScope

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_start():
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def double_precision():
    """Make every new tensor double."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
