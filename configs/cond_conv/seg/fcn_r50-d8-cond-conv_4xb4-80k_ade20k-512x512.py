# Four experts in the last stage; the classifier of ImageNet is where they start.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(kernel_size=3, stage=4, to=dict(type='mmext.CondConv2d', num_experts=4))],
    )
)
