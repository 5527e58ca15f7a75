_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, match=r'conv2', to=dict(type='mmext.DynamicFilter2d', hidden_channels=24))],
    )
)
