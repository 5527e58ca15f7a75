_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The window and the number of points of the released ConvNeXt-T.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[
            dict(
                depthwise=True,
                to=dict(type='mmext.DCLSConv2d', kernel_size=17, padding=8, kernel_count=34, version='v0'),
            )
        ],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),  # the base's
    dict(type='mmext.ProjectionHook'),
    dict(type='mmext.RepulsionHook'),
]
