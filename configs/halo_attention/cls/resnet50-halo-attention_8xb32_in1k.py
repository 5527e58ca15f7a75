# Attention in the last stage, as in the hybrids of the paper. It starts anew.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=4, to=dict(type='mmext.HaloAttention2d', kernel_size=7, padding=3))],
    )
)
