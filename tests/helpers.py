"""What many tests need: a model away from where it starts, how near a type comes, and a tool as a module."""

import importlib.util
import sys
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mmext.blocks.attention import SelfAttention
from mmext.hosts import build_model

TOOLS = Path(__file__).parents[1] / 'tools'
# The largest error, relative to the largest value, of one operator that sums in its own type or in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def shake(model, by=0.02):
    """Move every parameter and statistic away from its initial value, by much in a single layer, by little in a deep model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_var is not None:
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def shake_norms(model):
    """Draw statistics and parameters for every batch norm, and leave all else as it is."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(std=0.3)
    return model


def operations(net, side=224):
    """Return multiply-adds in billions for a square picture, without the products inside of attention."""
    inside = []

    def count(layer, args, _):
        width = layer.project.in_features
        inside.append(2 * (args[0].numel() // width) ** 2 * width)

    for module in net.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.empty(1, 3, side, side, device='meta'))
    return (counter.get_total_flops() / 2 - sum(inside)) / 1e9


def trained_state(cfg):
    """Return the state of a model, given by its config, every value of which has moved away from its start."""
    model = build_model(cfg)
    model.init_weights()
    return shake(model).state_dict()


def tool(name):
    """Load ``tools/NAME.py`` as a module of its own, with its folder on the path as when it is run."""
    path = TOOLS / f'{name}.py'
    # Under a name that no other module has: there is a test in the standard library.
    spec = importlib.util.spec_from_file_location(f'tools_{path.stem}', path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
