_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

# The second convolution of a block mixes no channels then. The sizes are about those of an image of 800 x 1333.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                match=r'layer\d\.\d\.conv2', stage=3, to=dict(type='mmext.TVConv2d', size=(50, 84), hidden_channels=64)
            ),
            dict(
                match=r'layer\d\.\d\.conv2', stage=4, to=dict(type='mmext.TVConv2d', size=(25, 42), hidden_channels=64)
            ),
        ],
    ),
)
