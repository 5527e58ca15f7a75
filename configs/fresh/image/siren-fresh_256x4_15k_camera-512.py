_base_ = '../../inr/_base_/camera-512_15k.py'
# 'fresh': tools/train.py chooses the first layer's frequency from the spectrum of the picture.
model = dict(
    type='mmext.SignalModel',
    value_range=(-1, 1),
    network=dict(
        type='mmext.CoordMLP',
        out_features=1,
        width=256,
        depth=4,
        act_cfg=dict(type='mmext.SineActivation', first_w0='fresh'),
    ),
)
