# An InceptionNeXt of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.InceptionNeXt',
        arch=dict(depths=(2, 2, 2), channels=(24, 48, 96), ratios=(4, 4, 3), band=7),
        out_indices=(2,),
    )
)
