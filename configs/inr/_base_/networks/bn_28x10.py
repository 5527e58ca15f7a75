model = dict(
    type='mmext.SignalModel',
    network=dict(
        type='mmext.CoordMLP',
        width=28,
        depth=10,
        norm_cfg=dict(type='BN'),
    ),
)
