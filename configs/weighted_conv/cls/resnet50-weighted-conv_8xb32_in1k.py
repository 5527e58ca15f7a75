_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# A fixed density, 0.7 beside the center: the released code's example for 3 x 3.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.WeightedConv2d', density=0.7))],
    )
)
