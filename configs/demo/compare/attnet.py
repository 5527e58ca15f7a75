# An AttNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.AttNet',
        arch=dict(depths=(1, 2, 1), channels=(24, 48, 96), ratios=(4, 4, 4)),
        out_indices=(2,),
    )
)
