_base_ = '../../inr/_base_/camera-256_5k.py'
model = dict(
    type='mmext.SignalModel',
    network=dict(type='mmext.ConvINR', out_features=1, width=32, depth=10),
)
