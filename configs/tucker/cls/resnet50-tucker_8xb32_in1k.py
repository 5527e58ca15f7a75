_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# Half of the channels as ranks. The stem, which sees three channels, stays whole.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.TuckerConv2d', ratio=0.5))],
    )
)
