_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# The base's ImageNet kernels are decomposed when they are loaded; those of its three-layer stem stay whole.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(match='layer', kernel_size=3, to=dict(type='mmext.TuckerConv2d', ratio=0.5))],
    )
)
