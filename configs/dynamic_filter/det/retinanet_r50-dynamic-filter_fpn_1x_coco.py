# A filter for every pixel in the last stage. It starts anew.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=4, to=dict(type='mmext.DynamicFilter2d'))],
    )
)
