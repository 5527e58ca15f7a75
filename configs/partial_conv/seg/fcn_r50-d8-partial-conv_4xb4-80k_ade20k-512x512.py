_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# The base's ImageNet weights load; they were trained with zero padding, of which only the borders can tell.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        # Every layer with padding; the stem of ResNetV1c has 3x3 kernels, too.
        rules=[dict(kernel_size=3, to=dict(type='mmext.PartialConv2d'))],
    )
)
