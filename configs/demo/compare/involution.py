_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d\.conv2',
                to=dict(type='mmext.Involution2d', kernel_size=7, padding=3, group_channels=12),
            )
        ],
    )
)
