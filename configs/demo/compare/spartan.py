# A SpaRTAN of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.SpaRTAN',
        arch=dict(depths=(1, 1, 1), channels=(24, 48, 96), ratios=(2, 2, 2)),
        out_indices=(2,),
    )
)
