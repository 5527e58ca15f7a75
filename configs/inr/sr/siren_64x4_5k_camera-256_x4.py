_base_ = '../_base_/camera-256_5k.py'
# Trained on 64 x 64 block means, each compared with the mean of the network over the block, and evaluated on 256 x 256.
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.DownsamplingOperator', factor=4, points='all'),
    network=dict(
        type='mmext.CoordMLP',
        out_features=1,
        width=64,
        depth=4,
        act_cfg=dict(type='mmext.SineActivation', first_w0=25.0),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
