_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# In the place of the 3x3 convolutions of bottlenecks that have no stride.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d+\.conv2',
                stride=1,
                to=dict(type='mmext.ContMixConv2d', kernel_size=7, padding=3, heads=8),
            )
        ],
    ),
)
