_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d\.conv2',
                to=dict(type='mmext.TVConv2d', size=(12, 12)),
            )
        ],
    )
)
