model = dict(
    type='mmext.SignalModel',
    network=dict(
        type='mmext.CoordMLP',
        width=28,
        depth=10,
        act_cfg=dict(type='mmext.SineActivation', bias_init='weight'),
    ),
)
