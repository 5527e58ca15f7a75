# An OverLoCK of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.OverLoCK',
        arch=dict(
            depths=(1, 1, 1, 1), focus_depths=(2, 1), channels=(16, 32, 48, 64), kernels=(7, 7, 5, 5), heads=(3, 4)
        ),
        dense=False,
        head_channels=96,
        out_indices=(3,),
    )
)
