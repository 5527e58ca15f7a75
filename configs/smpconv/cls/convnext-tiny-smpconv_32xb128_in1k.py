_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The kernel sizes of the released network, by stage.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[
            dict(depthwise=True, stage=0, to=dict(type='mmext.SMPConv2d', kernel_size=31, padding=15)),
            dict(depthwise=True, stage=1, to=dict(type='mmext.SMPConv2d', kernel_size=29, padding=14)),
            dict(depthwise=True, stage=2, to=dict(type='mmext.SMPConv2d', kernel_size=27, padding=13)),
            dict(depthwise=True, stage=3, to=dict(type='mmext.SMPConv2d', kernel_size=13, padding=6)),
        ],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),  # the base's
    dict(type='mmext.ProjectionHook'),
]
