# Softmax kernels in the last two stages. They start anew.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(3, 4), to=dict(type='mmext.DynamicConv2d'))],
    )
)
