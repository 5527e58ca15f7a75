_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.HaloAttention2d', kernel_size=5, padding=2))],
    )
)
