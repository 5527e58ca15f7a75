# The classifier of ImageNet is where the layers start, exactly.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(match=r'\.conv\d', stage=(2, 3, 4), to=dict(type='mmext.FDConv2d'))],
    )
)
