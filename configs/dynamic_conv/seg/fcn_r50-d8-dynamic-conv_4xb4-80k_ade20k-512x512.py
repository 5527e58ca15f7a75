# Softmax kernels in the last two stages. They start anew.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(kernel_size=3, stage=(3, 4), to=dict(type='mmext.DynamicConv2d'))],
    )
)
