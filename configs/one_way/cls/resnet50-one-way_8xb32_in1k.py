_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.OneWayConv2d'))],
    )
)
