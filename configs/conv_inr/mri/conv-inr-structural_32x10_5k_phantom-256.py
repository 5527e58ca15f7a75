_base_ = '../../inr/_base_/phantom-256_5k.py'
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.MaskedFourierOperator', mask='gaussian'),
    network=dict(type='mmext.ConvINR', out_features=1, width=32, depth=10, reparam='structural'),
)
