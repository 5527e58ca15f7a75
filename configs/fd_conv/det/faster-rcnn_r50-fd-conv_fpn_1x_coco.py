# The classifier of ImageNet is where the layers start, exactly.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(match=r'\.conv\d', stage=(2, 3, 4), to=dict(type='mmext.FDConv2d'))],
    )
)
