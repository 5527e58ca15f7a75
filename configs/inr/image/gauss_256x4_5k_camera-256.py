_base_ = '../_base_/camera-256_5k.py'
model = dict(
    type='mmext.SignalModel',
    network=dict(
        type='mmext.CoordMLP', out_features=1, width=256, depth=4, act_cfg=dict(type='mmext.GaussianActivation')
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
