"""The smallest arguments of every registered component that cannot be built without any."""

from mmext.registry import ALL

for registry in ALL.values():
    registry.import_from_location()


def members(package: str) -> list[str]:
    """Return the names of the modules that live in ``mmext.<package>`` and are registered."""
    return sorted(n for n, c in ALL['model'].module_dict.items() if c.__module__.startswith(f'mmext.{package}.'))


CONV = dict(in_channels=8, out_channels=8, kernel_size=3)
PYRAMID = dict(in_channels=8, out_channels=8)
OPTIMIZER = dict(type='mmext.SAGD', lr=0.1)

#: A component that needs no arguments needs no entry, except a backbone, to be small; nor does a conv layer.
ARGUMENTS = {name: CONV for name in members('convs')} | {
    'ConvINR': dict(width=6, depth=2),
    'CoordMLP': dict(width=6, depth=2),
    'CrossNorm': dict(num_features=8),
    'DepthwiseConv2d': dict(CONV, groups=8),
    'DilatedReparamConv2d': dict(CONV, kernel_size=9),
    'FalconNet': dict(arch=dict(depths=(1, 2, 1), channels=(16, 32, 64)), out_indices=(0, 1, 2)),
    'GhostCO': PYRAMID,
    'GlobalNorm': dict(num_features=8),
    'InceptionDWConv2d': dict(CONV, kernel_size=5, groups=8),
    'InterflowHead': dict(in_channels=(4, 8), num_classes=3),
    'LENI': dict(num_channels=8),
    'LENIConv': CONV,
    'LayerOptionsConstructor': dict(optim_wrapper_cfg=dict(optimizer=OPTIMIZER)),
    'MFN': dict(width=6, depth=2),
    'MetaBasicBlock': dict(channels=16),
    'MetaLightBlock': dict(channels=16),
    'PConvNeck': PYRAMID,
    'PairHead': dict(head='mmdet.RetinaHead', in_channels=8, num_classes=3),
    'PartialSO': PYRAMID,
    'PyramidLinearHead': dict(in_channels=(4, 8), num_classes=3),
    'RefCO': dict(in_channels=16, out_channels=16),
    'SAGDAmpOptimWrapper': dict(optimizer=OPTIMIZER),
    'SAGDOptimWrapper': dict(optimizer=OPTIMIZER),
    'SEPC': PYRAMID,
    'SPW': dict(network=dict(type='mmext.CoordMLP', width=6, depth=2), trunk_dim=8),
    'SignalDataset': dict(image='camera', size=16),
    'SignalModel': dict(network=dict(type='mmext.CoordMLP', width=6, depth=2)),
    'SPDConv2d': dict(CONV, stride=2),
    'ShiftwiseConv2d': dict(CONV, kernel_size=7, groups=8),
    'WeightedConv2d': dict(CONV, density=0.7, trainable=True),
    'folded': dict(model=dict(type='mmext.RefConv2d', **CONV)),
    'swap_layers': dict(
        model=dict(type='mmext.LENIConv', **CONV), rules=[dict(kernel_size=3, to=dict(type='mmext.RefConv2d'))]
    ),
}
