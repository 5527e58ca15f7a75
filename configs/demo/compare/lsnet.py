# An LSNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.LSNet',
        arch=dict(depths=(2, 4, 2), channels=(48, 96, 96), heads=4),
        out_indices=(2,),
    )
)
