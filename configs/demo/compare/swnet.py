# An SWNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.SWNet',
        arch=dict(depths=(1, 1, 1), channels=(24, 48, 96), kernels=(11, 7, 5), n_rep=2),
        out_indices=(2,),
    )
)
