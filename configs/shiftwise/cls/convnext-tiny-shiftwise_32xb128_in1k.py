_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The kernel sizes of the released network, by stage.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[
            dict(depthwise=True, stage=0, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=51, padding=25)),
            dict(depthwise=True, stage=1, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=49, padding=24)),
            dict(depthwise=True, stage=2, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=47, padding=23)),
            dict(depthwise=True, stage=3, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=13, padding=6)),
        ],
    )
)
