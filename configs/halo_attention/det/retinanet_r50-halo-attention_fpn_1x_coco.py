# Attention in the last stage, as in the hybrids of the paper. It starts anew.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=4, to=dict(type='mmext.HaloAttention2d', kernel_size=7, padding=3))],
    )
)
