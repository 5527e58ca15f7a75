# A PfNet with the blocks of R50-hybrid of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.PfNet',
        arch=dict(depths=(1, 2, 2), channels=(48, 96, 96), kind='hybrid', stem_channels=24),
        out_indices=(2,),
    )
)
