# The classifier of ImageNet is where the layers start, exactly.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(match=r'\.conv\d', stage=(2, 3, 4), to=dict(type='mmext.FDConv2d'))],
    )
)
