# A RedNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.RedNet',
        arch=dict(depths=(2, 2, 2), channels=(64, 128, 192)),
        stem_channels=32,
        out_indices=(2,),
    ),
    head=dict(in_channels=192),
)
