# Softmax kernels in the last two stages. They start anew.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(3, 4), to=dict(type='mmext.DynamicConv2d'))],
    )
)
