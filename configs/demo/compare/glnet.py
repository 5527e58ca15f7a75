# A GLNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.GLNet',
        arch=dict(
            depths=(1, 2, 2),
            channels=(24, 48, 96),
            mixers=('slots', 'slots', 'alternating'),
            head_channels=12,
            slots=16,
        ),
        out_indices=(2,),
    )
)
