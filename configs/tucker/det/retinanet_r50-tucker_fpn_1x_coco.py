_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The base's ImageNet kernels are decomposed when they are loaded. Its first stage is frozen there and stays as it is.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, stage=(2, 3, 4), to=dict(type='mmext.TuckerConv2d', ratio=0.5))],
    )
)
