_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# UniRepLKNet-T's pattern of kernel sizes: 3 in the first stage and in every second block of the third, else 13.
# The base's ImageNet weights load but for the depthwise kernels; better is a checkpoint of the classifier in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[
            dict(
                depthwise=True,
                match=r'stages\.(0\.|2\.[1357]\.)',
                to=dict(type='mmext.DilatedReparamConv2d', kernel_size=3, padding=1),
            ),
            dict(
                depthwise=True,
                to=dict(type='mmext.DilatedReparamConv2d', kernel_size=13, padding=6, norm_cfg=dict(type='SyncBN')),
            ),
        ],
    )
)
