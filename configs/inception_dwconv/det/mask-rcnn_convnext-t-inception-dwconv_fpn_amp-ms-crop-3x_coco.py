_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# The base's ImageNet weights load but for the depthwise kernels; better is a checkpoint of the classifier in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[dict(depthwise=True, to=dict(type='mmext.InceptionDWConv2d', kernel_size=11, padding=5))],
    )
)
