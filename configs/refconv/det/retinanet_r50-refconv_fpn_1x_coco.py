_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The basis is the base's ImageNet classifier. Its first stage is frozen there, so that a map in it would learn nothing.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(2, 3, 4), to=dict(type='mmext.RefConv2d'))],
    )
)
