_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.FDConv2d', kernel_num=16))],
    )
)
