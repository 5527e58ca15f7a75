_base_ = 'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py'

model = dict(
    backbone=dict(
        init_cfg=[
            dict(type='mmext.ConvolutionAwareInit', layer='Conv2d'),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ]
    )
)
