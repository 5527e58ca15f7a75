_base_ = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'

# The base's ImageNet weights load but for the depthwise kernels; better is a checkpoint of the classifier in ../cls.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmpretrain.ConvNeXt',
        rules=[dict(depthwise=True, to=dict(type='mmext.InceptionDWConv2d', kernel_size=11, padding=5))],
    )
)
