"""EMOv2: the network. A file says nothing of the windows."""

from __future__ import annotations

from torch import Tensor

from mmext.converters.engine import Layer, system

__all__ = ['emov2']

BLOCK, OURS = r'stage([1-9])\.(\d+)\.', r'\1.blocks.\2.'
NAMES = (
    (r'norm\.(?:norm\.)?(\w+)', r'out_norms.0.\1'),
    (r'stage0\.2\.conv\.(\w+)', r'stem.2.\1'),
    (r'stage0\.(\d)\.conv\.(\w+)', r'stem.\1.0.\2'),
    (r'stage0\.(\d)\.norm\.(\w+)', r'stem.\1.1.\2'),
    (rf'{BLOCK}norm\.(?:norm\.)?(\w+)', rf'{OURS}norm.\3'),
    (rf'{BLOCK}eops\.0\.net\.conv\.(\w+)', rf'{OURS}expand.0.\3'),
    (rf'{BLOCK}eops\.0\.qk\.conv\.(\w+)', rf'{OURS}expand.query_key.\3'),
    (rf'{BLOCK}eops\.0\.v\.conv\.(\w+)', rf'{OURS}expand.value.\3'),
    (rf'{BLOCK}conv_local\.conv\.(\w+)', rf'{OURS}local.0.\3'),
    (rf'{BLOCK}conv_local\.norm\.(\w+)', rf'{OURS}local.1.\3'),
    (rf'{BLOCK}proj\.conv\.(\w+)', rf'{OURS}project.\3'),
    (rf'{BLOCK}ls\.gamma', rf'{OURS}gamma'),
)


@system(
    'EMOv2',
    r'stage0\.0\.conv\.weight',
    takes=r'stage\d\..*|norm\..*|head\..*',
    signature=(r'stage0\.0\.conv\.weight', r'stage\d\.\d+\.eops\.0\..*', r'stage\d\.\d+\.ls\.gamma'),
)
def emov2(layer: Layer, options: dict[str, str]) -> dict[str, Tensor]:
    """Name blocks and expansions as here; the classifier is left out."""
    ours = {}
    for key, tensor in layer.renamed(*NAMES).items():
        if key[0].isdigit():
            stage, _, rest = key.partition('.')
            key = f'stages.{int(stage) - 1}.{rest}'
        ours[key] = tensor.flatten() if key.endswith('.gamma') else tensor
    return ours
