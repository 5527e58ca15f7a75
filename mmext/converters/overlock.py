"""OverLoCK: the released classifiers, detectors and segmentors, as trained."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from mmext.converters.engine import Layer, system
from mmext.errors import UsageError

__all__ = ['overlock']

_STAGES = {f'blocks{i + 1}': f'stages.{i}.blocks' for i in range(3)} | {'blocks4': 'overview.blocks'}
_STAGES |= {'sub_blocks3': 'focus.0', 'sub_blocks4': 'focus.1'}
#: Of convolution and norm, by their place.
_PARTS = ('conv', 'norm')
_NET = (
    (r'patch_embed1\.(\d+)\.', lambda m: f'stem.{int(m[1]) // 3}.{int(m[1]) % 3}.'),
    (r'patch_embed([23])\.([01])\.', lambda m: f'stages.{int(m[1]) - 1}.shrink.{_PARTS[int(m[2])]}.'),
    (r'patch_embed4\.([01])\.', lambda m: f'overview.shrink.{_PARTS[int(m[1])]}.'),
    (r'high_level_proj\.', lambda m: 'to_context.'),
    (r'patch_embedx\.x_proj\.([01])\.', lambda m: f'shrink_map.{_PARTS[int(m[1])]}.'),
    (r'patch_embedx\.h_proj\.([01])\.', lambda m: f'shrink_context.{_PARTS[int(m[1])]}.'),
    (r'extra_norm\.1\.', lambda m: 'stages.1.norm.'),
    (r'extra_norm\.([0-3])\.', lambda m: f'norms.{m[1]}.'),
    (r'extra_norm\.4\.', lambda m: 'overview_out.0.'),
    (r'h_proj\.([01])\.', lambda m: f'overview_out.{int(m[1]) + 1}.'),
    (r'aux_head\.0\.', lambda m: 'overview_norm.'),
    (r'head\.0\.', lambda m: 'head.conv.'),
    (r'head\.1\.', lambda m: 'head.bn.'),
)
_FEED_FORWARD = ('expand', 'act', 'depthwise.conv', 'response', 'project')
_BASE = (
    (r'dwconv\.', lambda m: 'depthwise.conv.'),
    (r'ls\.', lambda m: 'scale.'),
    (r'proj\.0\.', lambda m: 'branch.norm.'),
    (r'proj\.1\.', lambda m: 'branch.large.conv.'),
    (r'proj\.2\.', lambda m: 'branch.large.norm.'),
    (r'proj\.3\.proj\.([13])\.', lambda m: f'branch.gate.{"reduce" if m[1] == "1" else "expand"}.'),
    (r'proj\.([4-8])\.', lambda m: f'branch.{_FEED_FORWARD[int(m[1]) - 4]}.'),
)
_FOCUS = (
    (r'x_scale\.', lambda m: 'scale_context.'),
    (r'h_scale\.', lambda m: 'scale_overview.'),
    (r'dwconv([12])\.', lambda m: f'depthwise_{"in" if m[1] == "1" else "out"}.conv.'),
    (r'norm([12])\.', lambda m: f'norm_{"in" if m[1] == "1" else "out"}.'),
    (r'ls([12])\.', lambda m: f'scale_{"in" if m[1] == "1" else "out"}.'),
    (r'fusion\.(\d)\.', lambda m: f'fuse.{("depthwise", "norm", "act", "project", "response")[int(m[1])]}.'),
    (r'weight_query\.([01])\.', lambda m: f'mixer.query.{_PARTS[int(m[1])]}.'),
    (r'weight_key\.([12])\.', lambda m: f'mixer.key.{_PARTS[int(m[1]) - 1]}.'),
    (r'weight_proj\.', lambda m: 'mixer.project.'),
    (r'rpb([12])$', lambda m: f'mixer.{"small" if m[1] == "1" else "large"}_bias'),
    (r'dyconv_proj\.([01])\.', lambda m: f'mixed.{_PARTS[int(m[1])]}.'),
    (r'lepe\.0\.', lambda m: 'large.conv.'),
    (r'lepe\.1\.', lambda m: 'large.norm.'),
    (r'se_layer\.proj\.([13])\.', lambda m: f'channel_gate.{"reduce" if m[1] == "1" else "expand"}.'),
    (r'gate\.([01])\.', lambda m: f'gate.{_PARTS[int(m[1])]}.'),
    (r'proj\.([01])\.', lambda m: f'project.{("norm", "conv")[int(m[1])]}.'),
    (r'mlp\.([0-4])\.', lambda m: f'mlp.{_FEED_FORWARD[int(m[1])]}.'),
)
#: Parts with a factor and an offset for each channel.
_AFFINE = r'.*\b(scale|scale_\w+|response|overview_out\.2)\.'


@system(
    'OverLoCK',
    r'patch_embed1\.0\.weight',
    takes=r'(patch_embed[1-4x]|(sub_)?blocks\d|high_level_proj|extra_norm|h_proj|head|aux_head)\..*',
    signature=(r'patch_embedx\.x_proj\.0\.weight', r'sub_blocks3\.0\.weight_proj\.weight'),
)
def overlock(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the parts as ours are; the last layers of the classifiers, which belong to the host's head, are left out."""
    if not any('.origin_bn.' in name for name in layer):
        raise UsageError(
            f'{layer.name} is the re-parameterized form of OverLoCK; convert the file that was trained, and fold the model'
        )
    ours = {}
    for official in layer:
        if re.match(r'aux_head\.(?!0\.)|head\.4', official):
            continue
        name = _ours(official, layer)
        tensor = layer[official]
        if found := re.match(_AFFINE, name):
            kind = 'shift' if name.endswith(('.bias', '.beta')) else 'scale'
            name, tensor = f'{found[0]}{kind}', tensor.reshape(-1, 1, 1)
        ours[name] = tensor
    return ours


def _ours(name: str, layer: Layer) -> str:
    if not (found := re.match(r'((?:sub_)?blocks\d)\.(\d+)\.(.*)', name)):
        return _first(name, _NET)
    rest = _first(found[3], _FOCUS if found[1].startswith('sub') else _BASE)
    if large := re.fullmatch(r'(.*large\.conv\.)(.*)', rest):
        start = name[: -len(large[2])]
        rest = large[1] + _branch(large[2], [other[len(start) :] for other in layer if other.startswith(start)])
    return f'{_STAGES[found[1]]}.{found[2]}.{rest}'


def _first(name: str, patterns: tuple) -> str:
    for pattern, ours in patterns:
        if found := re.match(pattern, name):
            return ours(found) + name[found.end() :]
    return name


def _branch(name: str, all_names: Sequence[str]) -> str:
    """Name a part of the large kernel: its own, and those trained beside it, by spacing and then by size."""
    part, rest = name.split('.', 1)
    if part in ('lk_origin', 'origin_bn'):
        number = 0
    else:
        beside = {_place(other) for other in all_names if other.startswith('dil_')}
        number = 1 + sorted(beside).index(_place(part))
    return f'branches.{number}.{"norm." if "bn" in part else ""}{rest}'


def _place(part: str) -> tuple[int, int]:
    """Return the spacing and the size that a branch's name says."""
    kernel, spacing = re.match(r'dil_(?:conv|bn)_k(\d+)_(\d+)', part).groups()  # type: ignore[union-attr]
    return int(spacing), int(kernel)
