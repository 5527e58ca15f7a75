_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(stride=2, match='layer', to=dict(type='mmext.SPDConv2d'))],
    )
)
