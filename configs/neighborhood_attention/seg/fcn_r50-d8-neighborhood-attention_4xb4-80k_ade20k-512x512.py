# Attention where the stride is one. It starts anew.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[
            dict(
                kernel_size=3,
                stride=1,
                stage=(3, 4),
                to=dict(type='mmext.NeighborhoodAttention2d', kernel_size=7, padding=3, dilation=1),
            )
        ],
    )
)
