_base_ = '../_base_/camera-256_5k.py'
# The frequency and the scale that the released scripts give for representing images.
model = dict(
    type='mmext.SignalModel',
    network=dict(
        type='mmext.CoordMLP',
        out_features=1,
        width=256,
        depth=3,
        act_cfg=dict(type='mmext.WaveletActivation', w0=20.0, s0=30.0),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
