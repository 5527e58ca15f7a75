# A UniRepLKNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.UniRepLKNet',
        arch=dict(depths=(1, 2, 2), channels=(24, 48, 96), kernels=((3,), (7, 3), (5,))),
        out_indices=(2,),
    )
)
