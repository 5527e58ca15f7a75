_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

# The base's ImageNet weights load but for the depthwise kernels; better is a checkpoint of the classifier in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[
            dict(depthwise=True, stage=0, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=51, padding=25)),
            dict(depthwise=True, stage=1, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=49, padding=24)),
            dict(depthwise=True, stage=2, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=47, padding=23)),
            dict(depthwise=True, stage=3, to=dict(type='mmext.ShiftwiseConv2d', kernel_size=13, padding=6)),
        ],
    )
)
