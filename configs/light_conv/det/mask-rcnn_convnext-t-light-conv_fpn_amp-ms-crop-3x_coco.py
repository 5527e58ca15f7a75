# Every depthwise kernel is a weighted mean, shared by the channels of a head. It starts anew.
_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[dict(depthwise=True, to=dict(type='mmext.LightConv2d'))],
    )
)
