"""SoftHGNN: the hypergraph in all released models, and the fusion around two of them in the detectors."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['soft_hgnn']

NAMES = (
    (r'edge_generator\.prototype_base', 'prototypes'),
    (r'edge_generator\.context_net\.(\w+)', r'context.\1'),
    (r'edge_generator\.pre_head_proj\.(\w+)', r'project.\1'),
    (r'(edge|node)_proj\.0\.(\w+)', r'\1.\2'),
)
BRANCHES = ('softhgbranch1.softhgnn.', 'softhgbranch2.softhgnn.')


@system(
    'SoftHGNN',
    r'(softhgbranch[12]\.softhgnn\.)?edge_generator\.prototype_base',
    takes=r'(edge_generator|edge_proj|node_proj|softhgbranch[12]|fuse|cv[12]|m)\..*|gate',
    signature=(
        r'(softhgbranch1\.softhgnn\.)?edge_generator\.prototype_base',
        r'(softhgbranch1\.softhgnn\.)?edge_generator\.context_net\.weight',
    ),
)
def soft_hgnn(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name the parts as here; a gate that is exactly one was never trained, and is left out."""
    if not any(name.startswith(BRANCHES) for name in layer):
        return _hypergraph(layer)
    ours = layer.renamed((r'fuse\.conv_out\.(.*)', r'fuse.\1'), (r'((?:cv[12]|m)\..*)', r'\1'))
    for i, prefix in enumerate(BRANCHES):
        ours.update({f'mixers.{i}.{name}': tensor for name, tensor in _hypergraph(layer.part(prefix)).items()})
    return ours


def _hypergraph(layer: Layer) -> dict[str, Tensor]:
    """Return the tensors of one hypergraph."""
    if layer['edge_generator.prototype_base'].ndim != 2:
        raise ValueError('prototypes are the rows of a matrix')
    ours = layer.renamed(*NAMES)
    if 'gate' in layer and float(layer['gate']) != 1:
        ours['gate'] = layer['gate']
    return ours
