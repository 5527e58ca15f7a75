_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

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
