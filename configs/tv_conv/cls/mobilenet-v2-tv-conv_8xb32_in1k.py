_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

# The sizes of the stages at an image of 224 x 224. A layer with a stride has the size of its output.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='MobileNetV2',
        rules=[
            dict(depthwise=True, stage=3, to=dict(type='mmext.TVConv2d', size=(28, 28), hidden_channels=64)),
            dict(depthwise=True, stage=4, to=dict(type='mmext.TVConv2d', size=(14, 14), hidden_channels=64)),
            dict(depthwise=True, stage=5, to=dict(type='mmext.TVConv2d', size=(14, 14), hidden_channels=64)),
            dict(depthwise=True, stage=6, to=dict(type='mmext.TVConv2d', size=(7, 7), hidden_channels=64)),
            dict(depthwise=True, stage=7, to=dict(type='mmext.TVConv2d', size=(7, 7), hidden_channels=64)),
        ],
    ),
)
