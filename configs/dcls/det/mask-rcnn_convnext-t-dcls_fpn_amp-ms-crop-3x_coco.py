_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# Of each kernel of the base's ImageNet classifier the 34 largest taps of 49; better is a checkpoint of the one in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[
            dict(
                depthwise=True,
                to=dict(type='mmext.DCLSConv2d', kernel_size=17, padding=8, kernel_count=34, version='v0'),
            )
        ],
    )
)
optim_wrapper = dict(
    constructor='mmext.LayerOptionsConstructor', base_constructor='LearningRateDecayOptimizerConstructor'
)
custom_hooks = [dict(type='mmext.ProjectionHook'), dict(type='mmext.RepulsionHook')]
