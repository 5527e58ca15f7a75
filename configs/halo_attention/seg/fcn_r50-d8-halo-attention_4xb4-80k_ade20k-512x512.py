# Attention in the last stage, as in the hybrids of the paper. It starts anew.
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[
            dict(kernel_size=3, stage=4, to=dict(type='mmext.HaloAttention2d', kernel_size=7, padding=3, dilation=1))
        ],
    )
)
