_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        # PD-ResNet: every layer with padding, the stem too.
        rules=[
            dict(kernel_size=7, to=dict(type='mmext.PartialConv2d')),
            dict(kernel_size=3, to=dict(type='mmext.PartialConv2d')),
        ],
    )
)
