_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

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
# The loop counts no epochs; the loss starts as late as in the classifier's schedule, after 7 % of it.
custom_hooks = [
    dict(type='mmext.ProjectionHook'),
    dict(type='mmext.RepulsionHook', start_epoch=0, start_iter=11200),
]
