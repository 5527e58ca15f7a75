_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        init_cfg=[
            dict(type='mmext.ConvolutionAwareInit', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
    )
)
