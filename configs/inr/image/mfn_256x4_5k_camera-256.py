_base_ = '../_base_/camera-256_5k.py'
# Trained on values in (-1, 1), as in the released code.
model = dict(
    type='mmext.SignalModel',
    value_range=(-1, 1),
    network=dict(type='mmext.MFN', out_features=1, width=256, depth=4, filter_type='gabor'),
)
