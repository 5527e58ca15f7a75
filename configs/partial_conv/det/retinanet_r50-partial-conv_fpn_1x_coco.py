_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The base's ImageNet weights load; they were trained with zero padding, of which only the borders can tell.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        # PD-ResNet: every layer with padding, the stem too.
        rules=[
            dict(kernel_size=7, to=dict(type='mmext.PartialConv2d')),
            dict(kernel_size=3, to=dict(type='mmext.PartialConv2d')),
        ],
    )
)
