# Attention where the stride is one. It starts anew.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                kernel_size=3,
                stride=1,
                stage=(3, 4),
                to=dict(type='mmext.NeighborhoodAttention2d', kernel_size=7, padding=3),
            )
        ],
    )
)
