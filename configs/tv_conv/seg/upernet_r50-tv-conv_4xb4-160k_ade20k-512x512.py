_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'

# The sizes are those of a crop of 512 x 512.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[
            dict(
                match=r'layer\d\.\d\.conv2', stage=3, to=dict(type='mmext.TVConv2d', size=(32, 32), hidden_channels=64)
            ),
            dict(
                match=r'layer\d\.\d\.conv2', stage=4, to=dict(type='mmext.TVConv2d', size=(16, 16), hidden_channels=64)
            ),
        ],
    ),
)
