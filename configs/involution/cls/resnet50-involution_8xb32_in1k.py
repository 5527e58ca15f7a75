_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# In the place of every 3x3 convolution of a bottleneck.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(match=r'layer\d\.\d+\.conv2', to=dict(type='mmext.Involution2d', kernel_size=7, padding=3))],
    ),
)
