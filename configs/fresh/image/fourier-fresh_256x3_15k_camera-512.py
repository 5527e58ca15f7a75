_base_ = '../../inr/_base_/camera-512_15k.py'
# A candidate's network is drawn three times instead of ten: the random frequencies are many, and the choice is stable.
model = dict(
    type='mmext.SignalModel',
    value_range=(-1, 1),
    network=dict(
        type='mmext.CoordMLP',
        out_features=1,
        width=256,
        depth=3,
        encoding=dict(type='mmext.FourierFeatures', num_frequencies=128, sigma=dict(type='fresh', num_inits=3), seed=0),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
