# An FFNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.FFNet',
        arch=dict(
            depths=(1, 2, 1), channels=(24, 48, 96), token_kernels=(3, 3, 7), channel_kernels=(3,) * 3, stem_channels=16
        ),
        out_indices=(2,),
    )
)
