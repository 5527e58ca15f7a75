# The stock backbone, half as wide as ResNet-18, learns the digits with the budget of stage 1 and 2 together.
_base_ = 'falconnet_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        stem_channels=32,
        base_channels=32,
        out_indices=(3,),
        strides=(1, 2, 2, 2),
    ),
    head=dict(in_channels=256),
)
