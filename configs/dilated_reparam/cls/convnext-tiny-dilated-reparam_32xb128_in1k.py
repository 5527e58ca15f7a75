_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# UniRepLKNet-T's pattern of kernel sizes: 3 in the first stage and in every second block of the third, else 13.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ConvNeXt',
        rules=[
            dict(
                depthwise=True,
                match=r'stages\.(0\.|2\.[1357]\.)',
                to=dict(type='mmext.DilatedReparamConv2d', kernel_size=3, padding=1),
            ),
            dict(depthwise=True, to=dict(type='mmext.DilatedReparamConv2d', kernel_size=13, padding=6)),
        ],
    )
)
