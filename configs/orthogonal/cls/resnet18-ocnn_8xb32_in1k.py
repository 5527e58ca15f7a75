_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

# The layers of the released script: the first convolution of each block, and the shortcuts.
custom_hooks = [
    dict(
        type='mmext.OrthogonalConvHook',
        method='ocnn',
        match=r'layer\d\.\d\.conv1$|downsample',
        weight=0.1,
    )
]
