# Four experts in the last stage; the classifier of ImageNet is where they start.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=4, to=dict(type='mmext.CondConv2d', num_experts=4))],
    )
)
