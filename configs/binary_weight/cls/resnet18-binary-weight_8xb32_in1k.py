_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

# The convolutions of the blocks; the stem, the shortcuts and the classifier stay real.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(match=r'layer\d\.\d\.conv', to=dict(type='mmext.BinaryWeightConv2d'))],
    )
)
custom_hooks = [dict(type='mmext.ProjectionHook')]
