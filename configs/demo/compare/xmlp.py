# X-MLP of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.XMLP',
        arch=dict(depths=(1, 2, 2), channels=(24, 48, 96)),
        img_size=48,
        stem_stride=4,
        out_indices=(2,),
    )
)
