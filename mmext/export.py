"""A model as a function from tensors to tensors: to run it, to compare two of them, and to export it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from mmext.contracts import MakesInputs

__all__ = ['TensorMode', 'comparable', 'example_inputs', 'export_onnx', 'max_relative_error', 'outputs_of']


class TensorMode(nn.Module):
    """A host's model, or a bare component, as a function from images to a tuple of tensors, without post-processing.

    This is what is compared before and after folding, and what exporters and compilers take.

    Args:
        model: The model, of any host, or one that makes its own inputs.
        inputs: Images, (N, 3, H, W), whose number and size all later calls have, or what :func:`example_inputs` gives.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        from mmengine.model import BaseModel
        from mmengine.structures import BaseDataElement

        self.model = model
        self.whole = isinstance(model, BaseModel)
        # Any, because a bare component need have neither.
        rpn_head: Any = getattr(model, 'rpn_head', None)
        self.two_stages = self.whole and hasattr(rpn_head, 'prior_generator') and hasattr(model, 'roi_head')
        size = tuple(inputs.shape[2:])
        # Two-stage detectors and DETRs ask the samples for the size of their image.
        sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        self.samples = [BaseDataElement(metainfo=dict(sizes, scale_factor=(1.0, 1.0))) for _ in inputs]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return all tensors that come out of the model, in their order."""
        if not self.whole:
            out = self.model(inputs)
        elif self.two_stages:
            out = _two_stages(self.model, inputs, self.samples)
        else:
            out = self.model(inputs, self.samples, mode='tensor')
        return tuple(_tensors(out))


def example_inputs(model: nn.Module, height: int, width: int) -> Tensor:
    """Return inputs to try ``model`` out on: its own, if it is a :class:`mmext.contracts.MakesInputs`, else two images.

    The images are noise.
    """
    if isinstance(model, MakesInputs):
        return model.example_inputs(height, width)
    return torch.randn(2, 3, height, width, generator=torch.Generator('cpu').manual_seed(0))


def outputs_of(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run a host's model, or a bare component, without post-processing, and return all tensors that come out."""
    with torch.no_grad():
        return list(TensorMode(model, inputs)(inputs))


def export_onnx(model: nn.Module, inputs: Tensor, path: str | PathLike) -> float:
    """Write the tensor mode of a folded model as ONNX and run it with onnxruntime on the CPU.

    Args:
        model: A model in eval mode.
        inputs: Images, (N, 3, H, W); the file is for this size, and any N where the model allows it. For a model that
            makes its own what :func:`example_inputs` gives, with the axes free that it names.
        path: File to write.

    Returns:
        The relative error of onnxruntime's outputs against the model's own, see :func:`max_relative_error`.

    Raises:
        RuntimeError: If onnx or onnxruntime is not installed, or the model computes with complex numbers.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f'the ONNX export needs onnx and onnxruntime ({error}); pip install onnx onnxruntime'
        ) from error
    function = TensorMode(model, inputs).eval()
    expected = outputs_of(model, inputs)
    if any(t.is_complex() for t in (*model.parameters(), *expected)):
        raise RuntimeError(f'ONNX has no complex numbers, and {type(model).__name__} computes with them')
    own = isinstance(model, MakesInputs)
    name, axes = (model.input_name, dict(model.input_axes)) if own else ('images', {0: 'batch'})
    # The exporter by tracing is in every supported torch; newer ones must be told so, older ones do not know the word.
    by_tracing: dict[str, Any] = (
        dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    )
    torch.onnx.export(
        function,
        (inputs,),
        str(path),
        input_names=[name],
        dynamic_axes={name: axes},
        opset_version=17,
        **by_tracing,
    )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    outputs = [torch.from_numpy(o) for o in session.run(None, {name: inputs.numpy()})]
    return max_relative_error(expected, outputs)


def _two_stages(model: Any, inputs: Tensor, samples: list) -> tuple:
    """Run the second stage on given boxes: a rounding error can change which proposals the first one's NMS keeps."""
    from mmengine.structures import InstanceData

    height, width = inputs.shape[2:]
    corners = inputs.new_tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.2, 0.3, 0.9, 0.7], [0.4, 0.1, 0.6, 0.8]])
    boxes = corners * inputs.new_tensor([width, height, width, height])
    features = model.extract_feat(inputs)
    proposals = [InstanceData(bboxes=boxes) for _ in samples]
    return model.rpn_head(features), model.roi_head.forward(features, proposals, samples)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from _tensors(value)
    elif isinstance(out, (list, tuple)):
        for value in out:
            yield from _tensors(value)


def max_relative_error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest over all tensors of max|reference - other| / max|reference|; inf if they do not correspond."""
    if [t.shape for t in reference] != [t.shape for t in other]:
        return float('inf')
    errors = [
        float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny))
        for a, b in zip(reference, other, strict=True)
        if comparable(a)
    ]
    return float('inf') if any(e != e for e in errors) else max(errors, default=0.0)


def comparable(tensor: Tensor) -> bool:
    """Tell whether a tensor holds numbers that a relative error makes sense for."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 0
