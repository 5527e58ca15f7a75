"""What the released checkpoints of the generated-kernel systems call their tensors, and how these become ours.

A system is one function of one layer: it gets the layer's tensors by their official names and returns ours, by the names that
the class in ``mmext.convs`` gives them. It is called after the system's folder in ``configs/``; :func:`convert` runs it over a
whole state dict, where everything else stays as it is.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmext.convs.dilated_reparam import BRANCHES
from mmext.convs.shiftwise import ShiftwiseConv2d
from mmext.errors import UsageError

__all__ = ['SYSTEMS', 'Converted', 'System', 'convert', 'find_system']


class Layer(dict[str, Any]):
    """The tensors of one layer by their official names, which remembers those that were asked for."""

    def __init__(self, name: str, tensors: Mapping[str, Any], notes: list[str]) -> None:
        super().__init__(tensors)
        self.name = name or 'the layer'
        self.notes = notes
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise UsageError(f'{self.name} has {", ".join(self)} and no {key}; is it a layer of this system?')
        self.used.add(key)
        return super().__getitem__(key)


LayerMap = Callable[[Layer, dict[str, str]], 'dict[str, Tensor] | None']


@dataclass(frozen=True)
class System:
    """A system's entry in the table.

    Args:
        name: What the command line calls it.
        target: The class in ``mmext.convs``.
        to_ours: The function of one layer; None from it leaves the layer as it is.
        marker: Regular expression of the name by which a layer is found.
        takes: Regular expression of the layer's other names; what the function does not ask for is dropped.
        plain: Whether official layers have the keys of plain convolutions.
        otherwise: What a file without any such layer is taken for, if there is such a case.
        options: What the user can say, with an explanation; ``layers`` among them must be said.
    """

    name: str
    target: str
    to_ours: LayerMap
    marker: str
    takes: str
    plain: bool
    otherwise: str
    options: dict[str, str]

    def layers(self, state: Mapping[str, Any]) -> list[str]:
        """Return the names of the layers, in the file's order."""
        pattern = re.compile(rf'(?:(.*?)\.)??(?:{self.marker})')
        found = {k: match[1] or '' for k in state if (match := pattern.fullmatch(k))}
        return list(dict.fromkeys(n for k, n in found.items() if not self.plain or getattr(state[k], 'ndim', 0) == 4))


SYSTEMS: dict[str, System] = {}
WHICH = ", whose keys are those of plain ones ('.*' for all)"


def system(
    target: str, marker: str, takes: str = 'weight', plain: bool = False, otherwise: str = '', **options: str
) -> Callable[[LayerMap], LayerMap]:
    """Enter a function of one layer into the table, under its own name."""

    def enter(to_ours: LayerMap) -> LayerMap:
        name = to_ours.__name__
        SYSTEMS[name] = System(name, target, to_ours, marker, takes, plain, otherwise, options)
        return to_ours

    return enter


@dataclass
class Converted:
    """The new state dict, and what to tell about it."""

    state: dict[str, Tensor] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_system(name: str) -> System:
    """Return the entry of that name.

    Raises:
        UsageError: If there is none; the message names the nearest ones.
    """
    if name not in SYSTEMS:
        near = difflib.get_close_matches(name, SYSTEMS, n=3, cutoff=0.0)
        raise UsageError(f'no system is called {name!r}; the nearest are {", ".join(near)} (--list shows all)')
    return SYSTEMS[name]


def convert(name: str, state: Mapping[str, Any], options: Mapping[str, str] | None = None) -> Converted:
    """Convert every layer of a system in a state dict.

    Args:
        name: The system.
        state: The official state dict. Tensors are what is kept of it; a layer may need other values too.
        options: The system's own, and ``layers``, a regular expression that restricts the conversion to some names.

    Raises:
        UsageError: If the name or an option is unknown, no layer is found, or one is not as the system's are.
    """
    entry, options = find_system(name), dict(options or {})
    if unknown := sorted(set(options) - {'layers', *entry.options}):
        raise UsageError(f'{name} takes the options {", ".join(["layers", *entry.options])}, got {", ".join(unknown)}')
    if 'layers' in entry.options and 'layers' not in options:
        raise UsageError(f'{name} needs --options layers=REGEX: {entry.options["layers"]}')
    try:
        wanted = re.compile(options.get('layers', ''))
    except re.error as error:
        raise UsageError(f'layers= takes a regular expression, {options["layers"]!r} is none ({error})') from error
    new = Converted()
    used: set[str] = set()
    ours: dict[str, dict[str, Tensor]] = {}  # by the official key in whose place they are put
    names = re.compile(f'{entry.marker}|{entry.takes}')
    for found in filter(wanted.search, entry.layers(state)):
        prefix = f'{found}.' if found else ''
        own = {k: k[len(prefix) :] for k in state if k.startswith(prefix) and names.fullmatch(k[len(prefix) :])}
        layer = Layer(found, {short: state[k] for k, short in own.items()}, new.notes)
        tensors = entry.to_ours(layer, options)
        if tensors is None:
            continue
        new.layers.append(found)
        new.dropped += [k for k, short in own.items() if short not in layer.used]
        used.update(own)
        ours[next(iter(own))] = {f'{prefix}{short}': tensor for short, tensor in tensors.items()}
    if not new.layers:
        new.notes.append(_nothing_found(entry, state))
    for key, value in state.items():
        if key in used:
            new.state.update(ours.get(key, {}))
        elif isinstance(value, Tensor):
            new.state[key] = value
        else:
            new.dropped.append(key)
    return new


def _nothing_found(entry: System, state: Mapping[str, Any]) -> str:
    """Return what the file is taken for, or refuse it."""
    if entry.otherwise:
        return entry.otherwise
    others = [s.name for s in SYSTEMS.values() if not s.plain and s.layers(state)]
    raise UsageError(
        f'there is no layer of {entry.name} among the {len(state)} entries ({", ".join(list(state)[:3])}, ...)'
        + (
            f'; are they of {" or ".join(others)}?'
            if others
            else '; is it a file of another system, or already folded?'
        )
    )


def _choice(options: dict[str, str], name: str, values: tuple[str, ...], default: str = '') -> str:
    """Return one of the values that an option can have."""
    value = options.get(name, default)
    if value not in values:
        raise UsageError(f'--options {name}= needs one of {", ".join(values)}, got {value or "none"}')
    return value


def _number(options: dict[str, str], name: str, default: float) -> float:
    """Return the value of an option that is a number."""
    try:
        return float(options.get(name, default))
    except ValueError as error:
        raise UsageError(f'--options {name}= needs a number, got {options[name]!r}') from error


def _source(kernel: Tensor) -> Tensor:
    """Mark what is only the source of a kernel as our layers do: no plain layer accepts another leading axis."""
    return kernel.unsqueeze(0)


@system('RefConv2d', r'convmap\.weight')
def refconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Keep the frozen basis and the map over it."""
    basis, weight = layer['weight'], layer['convmap.weight']
    if len(weight) != basis.shape[0] * basis.shape[1]:
        raise UsageError(
            f'{layer.name} has a map over {len(weight)} slices and a basis of {basis.shape[0]} x {basis.shape[1]} of them'
        )
    return dict(weight=_source(basis), map_weight=weight)


@system('PHConv2d', 'F|s', takes='A|a|bias')
def phconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Rename algebra and filters, and drop the bias, which the released layer never adds; fold hypercomplex linear layers."""
    if 'A' in layer and layer['F'].ndim == 5:
        return dict(algebra=layer['A'], filters=layer['F'])
    if 'a' in layer and 's' in layer and layer['s'].ndim == 3:
        kernel = torch.einsum('spq,soi->poqi', layer['a'], layer['s'])
        linear = dict(weight=kernel.flatten(2).flatten(0, 1))
        return {**linear, 'bias': layer['bias']} if 'bias' in layer else linear
    return None


@system(
    'DCLSConv2d',
    'P',
    takes='weight|SIG',
    version='v0 or v1, for files without SIG, which do not tell',
    window='HxW, the dilated kernel size, where it is not square (of v1, max and gauss)',
)
def dcls(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Put rows before columns, as only v0 has them; each block keeps its copy of positions that a stage shares."""
    positions = layer['P']
    if positions.shape[0] != 2:
        return None
    known, usual = (('max', 'gauss'), 'gauss') if 'SIG' in layer else (('v0', 'v1'), '')
    version = _choice(options, 'version', known, usual)
    if version == 'v0':
        return dict(point_weight=layer['weight'], P=positions)
    positions = positions.flip(0)
    if 'window' in options:
        # The released code counts the columns from the middle of the rows, and the rows from that of the columns.
        rows, cols = _pair(options['window'])
        offset = positions.new_tensor([cols // 2 - rows // 2, rows // 2 - cols // 2])
        positions = positions + offset.view(2, *[1] * (positions.ndim - 1))
    widths = dict(SIG=layer['SIG'].flip(0)) if 'SIG' in layer else {}
    return dict(point_weight=layer['weight'], P=positions, **widths)


def _pair(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r'(\d+)x(\d+)', text)):
        raise UsageError(f'--options window=HxW needs two numbers, such as 5x11, got {text}')
    return int(match[1]), int(match[2])


@system('SMPConv2d', 'weight_coord', takes='radius|weights|kernel_coord')
def smpconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Drop the grid; the weights of points that all channels share get the layout of a depthwise kernel."""
    weights = layer['weights']
    if len(layer['weight_coord']) == len(weights) == 1:
        weights = weights.transpose(0, 1)
    return dict(weight_coord=layer['weight_coord'], radius=layer['radius'], weights=weights)


@system('WeightedConv2d', 'Phi|den', takes='weight|alfa')
def weighted_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Keep the density's free numbers, the outermost first, be they fixed or trained."""
    weight = layer['weight']
    if weight.ndim != 4:
        return None
    taps = weight.shape[-1] // 2
    if taps == 0:
        return dict(weight=weight)
    # The middle row of the mask is the profile, which is 1 in its center.
    density = layer['den'] if 'den' in layer else layer['Phi'][taps, :taps]
    return dict(weight=_source(weight), density=density)


@system(
    'DEConv2d',
    r'conv1_5\.weight',
    takes=r'conv1_[1-4]\.conv\.(weight|bias)|conv1_5\.bias',
    otherwise='no layer has five branches: the file is in the released, simplified form, whose kernels are plain; it is '
    'copied',
)
def detail_enhanced(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the branches by what they do, and add up their five biases."""
    branches = ('conv1_1.conv', 'conv1_2.conv', 'conv1_3.conv', 'conv1_4.conv', 'conv1_5')
    central, horizontal, vertical, angular, plain = (layer[f'{b}.weight'] for b in branches)
    ours = dict(weight=_source(plain), central=central, horizontal=horizontal, vertical=vertical, angular=angular)
    if 'conv1_5.bias' in layer:
        ours['bias'] = torch.stack([layer[f'{b}.bias'] for b in branches]).sum(0)
    return ours


@system(
    'DilatedReparamConv2d',
    r'lk_origin\.weight',
    takes=r'lk_origin\.bias|origin_bn\..*|dil_conv_k\d+_\d+\.weight|dil_bn_k\d+_\d+\..*',
)
def dilated_reparam(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Number the branches; a merged block becomes a plain kernel with its bias."""
    size = layer['lk_origin.weight'].shape[-1]
    found = [match.groups() for k in layer if (match := re.fullmatch(r'dil_conv_k(\d+)_(\d+)\.weight', k))]
    if not found:
        return {k.removeprefix('lk_origin.'): layer[k] for k in layer if k.startswith('lk_origin.')}
    official = {f'{k}x{k}' + f'@{r}' * (r != '1'): (f'dil_conv_k{k}_{r}', f'dil_bn_k{k}_{r}') for k, r in found}
    order = [kind for kind in BRANCHES.get(size, ()) if kind in official]
    if len(order) < max(len(official), len(BRANCHES.get(size, ()))):
        order = list(official)
        layer.notes.append(f'{layer.name} has other branches than the table: build it with branches={order}')
    ours = {}
    for i, (conv, norm) in enumerate([('lk_origin', 'origin_bn'), *(official[kind] for kind in order)]):
        ours[f'branches.{i}.weight'] = layer[f'{conv}.weight']
        ours |= {f'branches.{i}.norm.{k.rpartition(".")[2]}': layer[k] for k in layer if k.startswith(f'{norm}.')}
    return ours


@system('GaussianConv2d', 'sigma')
def gaussian_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Learn logarithms: of sigma, or of sigma per axis; the three numbers of a full covariance stay as they are."""
    sigma = layer['sigma'].reshape(1, -1)
    if sigma.numel() > 3:
        raise UsageError(
            f'{layer.name} has {sigma.numel()} values of sigma, which are 1, 2 or 3 in the released layers'
        )
    numbers = sigma if sigma.numel() == 3 else sigma.abs().log()
    # The standard deviations of rows and columns; those of a full covariance are of its Cholesky factor's columns.
    largest = sigma.abs().max()
    if sigma.numel() == 3:
        a, b, c = sigma[0]
        largest = torch.maximum(a.exp(), torch.hypot(b, c.exp()))
    reach = max(1, math.ceil(2 * float(largest)))
    layer.notes.append(
        f'{layer.name} has a largest sigma of {largest:.4g}, for which the released window reaches {reach} pixels; '
        f'max_sigma={reach / 2:g} gives that window'
    )
    return dict(weight=_source(layer['weight']), log_sigma=numbers)


@system(
    'TuckerConv2d',
    'S',
    takes=r'Us\.[0-3]|r|bias',
    ranks='live to cut the tensors to the live ranks, room (the default) to keep the room in which ranks grow',
)
def tucker(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Cut out the live block by the ranks that the file lists, and count the bias twice, as the released layer does."""
    core, factors = layer['S'], [layer[f'Us.{i}'] for i in range(4)]
    rank = [int(r) for r in layer['r']]
    rank += core.shape[len(rank) :]
    if any(r > n for r, n in zip(rank, core.shape, strict=True)):
        raise UsageError(f'{layer.name} has the ranks {rank} and a core of {tuple(core.shape)}')
    tensors = [core[tuple(slice(r) for r in rank)], *(u[:, :r] for u, r in zip(factors, rank, strict=True))]
    if _choice(options, 'ranks', ('live', 'room'), 'room') == 'room':
        tensors = [_with_room(live, whole) for live, whole in zip(tensors, (core, *factors), strict=True)]
    names = ('core', 'factor_out', 'factor_in', 'factor_rows', 'factor_cols')
    ours = dict(zip(names, tensors, strict=True), live_rank=torch.tensor(rank))
    return {**ours, 'bias': 2 * layer['bias']} if 'bias' in layer else ours


def _with_room(live: Tensor, whole: Tensor) -> Tensor:
    """Put the live block back into its place, with zeros around it."""
    padded = torch.zeros_like(whole)
    padded[tuple(slice(n) for n in live.shape)] = live
    return padded


@system('BinaryWeightConv2d', 'weight', plain=True, layers=f'the binary layers{WHICH}')
def binary_weight(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Mark latent weights as such: in the file they look like kernels."""
    return dict(weight=_source(layer['weight']))


@system('ComplexConv2d', r'conv_r\.weight|kernel', takes=r'conv_i\.weight|conv_[ri]\.bias|bias')
def complex_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor] | None:
    """Take two convolutions, whose biases mix like their kernels, or Keras's kernel with both parts on the last axis."""
    if 'conv_r.weight' in layer:
        ours = dict(real=layer['conv_r.weight'], imag=layer['conv_i.weight'])
        if 'conv_r.bias' in layer:
            real, imag = layer['conv_r.bias'], layer['conv_i.bias']
            ours['bias'] = torch.cat([real - imag, real + imag])
        return ours
    if layer['kernel'].ndim != 4:
        return None
    real, imag = layer['kernel'].permute(3, 2, 0, 1).chunk(2)
    return {'real': real, 'imag': imag, **({'bias': layer['bias']} if 'bias' in layer else {})}


@system(
    'ShiftwiseConv2d',
    r'(?:[^.]+\.)?LoRA(?:s\.0)?\.weight',
    takes=r'(?:[^.]+\.)?(?:LoRAs\.\d+\.weight|bn_(?:lora1|lora2|small)\..*)|norm\..*|se\.(?:down|up)\..*|pwconv1\..*',
    ghost_ratio='part of the channels that pass, 0.23 by default',
    n_rep='number of orders, 4 by default',
    channels="number of channels, where a layer's block does not show it",
)
def shiftwise(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Draw the tables that no file holds, and put the channels behind the layer back into their order."""
    inner = next(k for k in layer if 'LoRA' in k).rpartition('LoRA')[0]
    paths = [layer[k] for k in sorted(layer) if k.startswith(f'{inner}LoRA')]
    count = len(layer[f'{inner}bn_small.weight'])
    small, n = paths[0].shape[-1], len(paths[0]) // count
    drawn = _shiftwise_tables(layer, options, count, n, small)
    ours = {f'{inner}paths': torch.stack([path.view(count, n, small, small) for path in paths])}
    for i, norm in enumerate((f'{inner}bn_lora1.', f'{inner}bn_lora2.', f'{inner}bn_small.')):
        ours |= {f'{inner}norms.{i}.{k.removeprefix(norm)}': layer[k] for k in layer if k.startswith(norm)}
    ours |= {f'{inner}{k}': table for k, table in drawn.items()}
    return ours | _reordered(layer, drawn['channels'], inner)


def _shiftwise_tables(layer: Layer, options: dict[str, str], count: int, n: int, small: int) -> dict[str, Tensor]:
    """Return the tables that a layer of ours draws, which are those of the released code."""
    ratio = _number(options, 'ghost_ratio', 0.23)
    if 'channels' in options:
        channels = int(_number(options, 'channels', 0))
    elif 'norm.weight' in layer:
        channels = len(layer['norm.weight'])
    else:
        fitting = [
            c for c in range(count, int((count + 2) / (1 - ratio)) + 1) if int(c * (1 - ratio)) // 2 * 2 == count
        ]
        raise UsageError(
            f'{layer.name} convolves {count} of its channels, which could be {fitting} in all; --options channels=NUMBER'
        )
    size = n * small - (n * small + 1) % 2  # odd, and n small kernels long
    made = ShiftwiseConv2d(
        channels,
        channels,
        size,
        groups=channels,
        small_kernel=small,
        ghost_ratio=ratio,
        n_path=1,
        n_rep=int(_number(options, 'n_rep', 4)),
    )
    if made.paths.shape[1] != count:
        raise UsageError(
            f'{layer.name} convolves {count} of {channels} channels, not {made.paths.shape[1]}; --options ghost_ratio=NUMBER'
        )
    return {k: getattr(made, k) for k in ('channels', 'slots_h', 'slots_v', 'slots_s')}


def _reordered(layer: Layer, convolved: Tensor, inner: str) -> dict[str, Tensor]:
    """Return what stands behind the layer in its block, for channels in their own order.

    The released layer returns the convolved channels first, and its block has learned with that.
    """
    behind = [k for k in layer if not k.startswith((f'{inner}LoRA', f'{inner}bn_'))]
    if not behind:
        layer.notes.append(
            f'{layer.name} stands alone; the released layer returns the convolved channels before the others, ours keeps '
            'their order'
        )
        return {}
    channels = len(layer['norm.weight'])
    passing = [c for c in range(channels) if c not in set(convolved.tolist())]
    place = torch.cat([convolved, torch.tensor(passing, dtype=torch.long)]).argsort()
    ours = {}
    for key in behind:
        reads = key == 'se.down.weight' or re.fullmatch(r'pwconv1\.(\d+\.)?weight', key)
        writes = key.startswith(('norm.', 'se.up.')) and layer[key].ndim > 0
        ours[key] = layer[key][:, place] if reads else layer[key][place] if writes else layer[key]
    return ours


@system('InceptionDWConv2d', r'dwconv_hw\.weight', takes=r'dwconv_[hw]\.(weight|bias)|dwconv_hw\.bias')
def inception_dwconv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the branches by their shapes and join their biases."""
    branches = dict(square='dwconv_hw', row='dwconv_w', column='dwconv_h')
    ours = {name: layer[f'{official}.weight'] for name, official in branches.items()}
    if 'dwconv_hw.bias' in layer:
        ours['bias'] = torch.cat([layer[f'{official}.bias'] for official in branches.values()])
    return ours


@system('SPDConv2d', 'weight', plain=True, layers=f'the convolutions of the phases{WHICH}')
def spd_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Rename the kernel of a convolution right behind space-to-depth; the phases are in the same order."""
    return dict(phase_weight=layer['weight'])


@system('PartialConv2d', 'weight', plain=True)
def partial_conv(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Keep the kernel: the keys are those of a plain convolution, and ours."""
    return dict(weight=layer['weight'])
