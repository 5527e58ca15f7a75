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


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
    """Be the only process of a group, as parallel training wants."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path_factory.mktemp("ddp")}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
