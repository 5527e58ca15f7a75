_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# It starts as the base's ImageNet classifier. The stem is frozen there, so that it stays as it is.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(stride=2, match='layer', to=dict(type='mmext.SPDConv2d'))],
    )
)
