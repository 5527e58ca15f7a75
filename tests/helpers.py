"""What many tests need: a model away from where it starts, and a tool as a module."""

import importlib.util
import sys
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

TOOLS = Path(__file__).parents[1] / 'tools'


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
