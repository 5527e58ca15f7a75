# After a ReLU every sign is +1: an activation that keeps them must stand before the binarized convolutions.
_base_ = 'resnet.py'

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
