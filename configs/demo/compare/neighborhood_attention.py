_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                kernel_size=3,
                stride=1,
                groups=1,
                match=r'conv2',
                to=dict(type='mmext.NeighborhoodAttention2d', kernel_size=7, padding=3),
            )
        ],
    )
)
