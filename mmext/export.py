"""A model as a function from tensors to tensors: to run it, to compare two of them, and to export it.

A file is written under a temporary name and renamed once it is proved. So a failed export leaves nothing behind.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmext.contracts import MakesInputs
from mmext.errors import reason
from mmext.files import settle

__all__ = [
    'FORMATS',
    'RefusalError',
    'TensorMode',
    'comparable',
    'example_inputs',
    'export',
    'export_axes',
    'export_onnx',
    'max_relative_error',
    'onnxruntime_with_onnx',
    'outputs_of',
    'read_onnx',
    'rounding_tolerance',
    'same_draws',
    'trace_onnx',
    'unfinished',
]


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

    The images are noise. A bare component gets as many channels as its first convolution takes.
    """
    if isinstance(model, MakesInputs):
        return model.example_inputs(height, width)
    from mmengine.model import BaseModel

    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None or isinstance(model, BaseModel) else first.in_channels
    return torch.randn(2, channels, height, width, generator=torch.Generator('cpu').manual_seed(0))


@contextmanager
def same_draws(inputs: Tensor, seed: int = 0) -> Iterator[None]:
    """Let what draws random numbers in its forward draw the same ones each time; the random state is put back."""
    device = inputs.device
    with torch.random.fork_rng([] if device.type == 'cpu' else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def outputs_of(model: nn.Module, inputs: Tensor, seed: int = 0) -> list[Tensor]:
    """Run a host's model, or a bare component, without post-processing, and return all tensors that come out.

    Some heads draw random numbers in every forward. Each call starts from the same ``seed``.
    """
    with torch.no_grad(), same_draws(inputs, seed):
        return list(TensorMode(model, inputs)(inputs))


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


def rounding_tolerance(model: nn.Module) -> float:
    """Return the relative error that two forms of ``model`` may have by rounding: 1e-4, more in half precision."""
    eps = [torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()]
    return max(1e-4, 20 * max((e for e in eps if e > 1e-4), default=0.0))


@torch.no_grad()
def max_relative_error(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest over all tensors of max|reference - other| / max|reference|; inf if they do not correspond.

    Infinities count as equal where both have the same one, as in masks. A NaN is equal to nothing.
    """
    if [t.shape for t in reference] != [t.shape for t in other]:
        return float('inf')
    errors = [_relative_error(a, b) for a, b in zip(reference, other, strict=True) if comparable(a)]
    return float('inf') if any(e != e for e in errors) else max(errors, default=0.0)


def _relative_error(reference: Tensor, other: Tensor) -> float:
    size = reference.abs()
    size = size.where(size.isfinite(), 0).max().clamp_min(torch.finfo(reference.dtype).tiny)
    return float((reference - other).abs().where(reference != other, 0).max() / size)


def comparable(tensor: Tensor) -> bool:
    """Tell whether a tensor holds numbers that a relative error makes sense for."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 0


@contextmanager
def unfinished(path: str | PathLike) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; it becomes ``path`` at the end and disappears on any error."""
    path = Path(path)
    partial = path.with_name(f'.{path.stem}.partial{path.suffix}')
    try:
        yield partial
        settle(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Format(NamedTuple):
    """One kind of file that a model can be exported to."""

    #: Ending of the file.
    suffix: str
    #: (function, inputs, axes, path): write the file; axes maps the dynamic axes of the input to their names.
    write: Callable[[TensorMode, Tensor, dict[int, str], Path], None]
    #: (path): return what runs the file.
    read: Callable[[Path], Callable[[Tensor], Sequence[Tensor]]]
    #: How it, and what runs it, is called in messages.
    title: str
    runtime: str


def export(
    model: nn.Module,
    inputs: Tensor,
    path: str | PathLike,
    kind: str = 'onnx',
    dynamic: bool = False,
    tolerance: float = 1e-4,
) -> float:
    """Write the tensor mode of a folded model as a file, read it, and compare what it computes on the CPU.

    Axes of the input are dynamic where that is proved: the file is compared at other values of each. The batch is tried
    always, height and width with ``dynamic``. A model that makes its own inputs names the axes. What is not equal there
    becomes fixed, and a line is logged that says so.

    Args:
        model: A model in eval mode, on the CPU.
        inputs: Images, (N, 3, H, W), or what :func:`example_inputs` gives.
        path: File to write.
        kind: A key of :data:`FORMATS`.
        dynamic: Whether height and width of images are tried too.
        tolerance: Largest relative error that counts as equal.

    Returns:
        The largest relative error of the file's outputs against the model's own, see :func:`max_relative_error`.

    Raises:
        RuntimeError: If no file can be written that computes the same; then none is.
    """
    error, axes, refusal = export_axes(model, inputs, path, kind, dynamic, tolerance)
    if refusal:
        names = _names(model)
        fixed = [f'{names[a]} {inputs.shape[a]}' for a in names if a not in axes]
        print_log(f'{Path(path).name} is for {" and ".join(fixed)} only ({refusal})', 'current')
    return error


def export_axes(
    model: nn.Module, inputs: Tensor, path: str | PathLike, kind: str, dynamic: bool, tolerance: float
) -> tuple[float, dict[int, str], str]:
    """Write a file as :func:`export` does, and return the error, the axes that are dynamic, and why no more are."""
    form, path, refusal = FORMATS[kind], Path(path), ''
    with torch.no_grad():
        expected = outputs_of(model, inputs)
        if max_relative_error(expected, outputs_of(model, inputs, seed=1)) > tolerance:
            raise RuntimeError(
                f'{type(model).__name__} draws random numbers in every forward, so that no file can be compared with it'
            )
        for axes in _axes_to_try(model, dynamic):
            function = TensorMode(model, inputs).eval()
            try:
                with unfinished(path) as partial:
                    form.write(function, inputs, axes, partial)
                    return _prove(form.read(partial), model, inputs, axes, tolerance), axes, refusal
            except Exception as failure:  # exporters and runtimes raise nearly anything
                refusal = str(failure) if isinstance(failure, RefusalError) else reason(failure)
    raise RuntimeError(refusal)


def export_onnx(
    model: nn.Module, inputs: Tensor, path: str | PathLike, dynamic: bool = False, tolerance: float = 1e-4
) -> float:
    """Write a folded model as ONNX and run it with onnxruntime, see :func:`export`."""
    return export(model, inputs, path, 'onnx', dynamic, tolerance)


def _names(model: nn.Module) -> dict[int, str]:
    return dict(model.input_axes) if isinstance(model, MakesInputs) else {0: 'batch', 2: 'height', 3: 'width'}


def _axes_to_try(model: nn.Module, dynamic: bool) -> list[dict[int, str]]:
    """Return the sets of dynamic axes, the widest first."""
    names = _names(model)
    if isinstance(model, MakesInputs):
        return [names, {}]
    return ([names] if dynamic else []) + [{0: 'batch'}, {}]


class RefusalError(RuntimeError):
    """Says in whole words why there is no file."""


def _prove(
    run: Callable[[Tensor], Sequence[Tensor]], model: nn.Module, inputs: Tensor, axes: dict[int, str], tolerance: float
) -> float:
    """Return the largest error over the traced inputs and others along each dynamic axis."""
    errors = []
    for sample in (inputs, *_others(model, inputs, axes)):
        expected = outputs_of(model, sample)
        try:
            found = run(sample)
        except Exception as failure:
            raise RefusalError(f'it fails on {tuple(sample.shape)}, {reason(failure)}') from failure
        errors.append(max_relative_error(expected, [f.to(e.dtype) for f, e in zip(found, expected, strict=False)]))
        if errors[-1] > tolerance:
            raise RefusalError(f'on {tuple(sample.shape)} it differs by {errors[-1]:.1e}')
    return max(errors)


def _others(model: nn.Module, inputs: Tensor, axes: dict[int, str]) -> list[Tensor]:
    """Return inputs of other sizes along ``axes``, as far as the model itself takes them."""
    generator = torch.Generator('cpu').manual_seed(1)
    batch, rest = inputs.shape[0], inputs.shape[1:]
    others = [torch.randn(n, *rest, generator=generator) for n in (1, 2, 5) if n != batch] if 0 in axes else []
    if 'height' in axes.values():
        rows, cols = (next(a for a, name in _names(model).items() if name == side) for side in ('height', 'width'))
        height, width = inputs.shape[rows], inputs.shape[cols]
        sizes = [(height + 32, width), (height, width + 64), (height + 15, width + 9)]
        made = [
            model.example_inputs(*size)
            if isinstance(model, MakesInputs)
            else torch.randn(1, inputs.shape[1], *size, generator=generator)
            for size in sizes
        ]
        taken = [x for x in made if _runs(model, x)]
        if not taken:
            raise RefusalError('the model itself takes no other size')
        others += taken
    return others


def _runs(model: nn.Module, inputs: Tensor) -> bool:
    try:
        outputs_of(model, inputs)
    except Exception:  # a host's model refuses a size by any error
        return False
    return True


def _write_onnx(function: TensorMode, inputs: Tensor, axes: dict[int, str], path: Path) -> None:
    if any(t.is_complex() for t in (*function.parameters(), *outputs_of(function.model, inputs))):
        raise RefusalError(f'ONNX has no complex numbers, and {type(function.model).__name__} computes with them')
    onnxruntime_with_onnx()
    model = function.model
    name = model.input_name if isinstance(model, MakesInputs) else 'images'
    trace_onnx(function, inputs, path, {name: axes} if axes else None, input_names=[name])


def trace_onnx(
    function: nn.Module, inputs: Tensor, path: Path, axes: dict[str, dict[int, str]] | None, **names: Any
) -> None:
    """Write a function of one tensor by tracing it; ``axes`` are the free ones of each input and output by name."""
    # The exporter by tracing is in every supported torch; newer ones must be told so, older ones do not know the word.
    by_tracing: dict[str, Any] = (
        dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that a value may vary is what the comparison finds out
        torch.onnx.export(function, (inputs,), str(path), dynamic_axes=axes, opset_version=17, **names, **by_tracing)


def read_onnx(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return what runs a file."""
    onnxruntime = onnxruntime_with_onnx()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(o) for o in session.run(None, {name: x.numpy()})]


def onnxruntime_with_onnx() -> Any:
    """Return onnxruntime, after onnx was found too."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise RefusalError(
            f'the ONNX export needs onnx and onnxruntime ({error}); pip install onnx onnxruntime'
        ) from error
    return onnxruntime


def _write_torchscript(function: TensorMode, inputs: Tensor, axes: dict[int, str], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(function, (inputs,), check_trace=False), str(path))


def _write_program(function: TensorMode, inputs: Tensor, axes: dict[int, str], path: Path) -> None:
    shapes = {'inputs': {axis: torch.export.Dim(name, min=1) for axis, name in axes.items()}} if axes else None
    torch.export.save(torch.export.export(function, (inputs,), dynamic_shapes=shapes, strict=False), path)


#: What a model can be exported to, by the name of the tool's flag.
FORMATS = {
    'onnx': Format('.onnx', _write_onnx, read_onnx, 'ONNX', 'onnxruntime'),
    'torchscript': Format(
        '.pt', _write_torchscript, lambda path: torch.jit.load(str(path)), 'TorchScript', 'the script'
    ),
    'export': Format(
        '.pt2', _write_program, lambda path: torch.export.load(path).module(), 'torch.export', 'the program'
    ),
}
