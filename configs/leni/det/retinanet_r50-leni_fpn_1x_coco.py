_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The base freezes the stem and the first stage, where LENI would stay the ReLU that it starts as.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(layer='ReLU', stage=(2, 3, 4), to=dict(type='mmext.LENI'))],
    )
)
