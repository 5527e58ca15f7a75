_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# The base's ImageNet kernels are taken as near as the points allow; better is a checkpoint of the classifier in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[
            dict(depthwise=True, stage=0, to=dict(type='mmext.SMPConv2d', kernel_size=31, padding=15)),
            dict(depthwise=True, stage=1, to=dict(type='mmext.SMPConv2d', kernel_size=29, padding=14)),
            dict(depthwise=True, stage=2, to=dict(type='mmext.SMPConv2d', kernel_size=27, padding=13)),
            dict(depthwise=True, stage=3, to=dict(type='mmext.SMPConv2d', kernel_size=13, padding=6)),
        ],
    )
)
optim_wrapper = dict(
    constructor='mmext.LayerOptionsConstructor', base_constructor='LearningRateDecayOptimizerConstructor'
)
custom_hooks = [dict(type='mmext.ProjectionHook')]
