_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[dict(depthwise=True, to=dict(type='mmext.InceptionDWConv2d', kernel_size=11, padding=5))],
    )
)
