_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

# After a ReLU every sign is +1: an activation that keeps them must stand before the binarized convolutions.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(match=r'layer\d\.\d\.conv', to=dict(type='mmext.XNORConv2d')),
            dict(layer='ReLU', to=dict(type='PReLU')),
        ],
    )
)
custom_hooks = [dict(type='mmext.ProjectionHook')]
