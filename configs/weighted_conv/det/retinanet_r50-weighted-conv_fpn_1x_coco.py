_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# It starts as the base's ImageNet classifier, whose kernels are divided by the density. The first stage is frozen there.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(2, 3, 4), to=dict(type='mmext.WeightedConv2d', density=0.7))],
    )
)
