_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# It starts as the base's ImageNet classifier, whose kernels are divided by the density.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(kernel_size=3, to=dict(type='mmext.WeightedConv2d', density=0.7))],
    )
)
