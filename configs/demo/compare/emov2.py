# An EMOv2 of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.EMOv2',
        arch=dict(
            depths=(1, 2, 2),
            channels=(24, 48, 96),
            ratios=(2, 2, 2),
            head_channels=(12,) * 3,
            attention=(False, False, True),
        ),
        out_indices=(2,),
        scales_first=False,
    )
)
