_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'

# The base's ImageNet classifier, whose kernels may become wider, the dilated ones smoother.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNetV1c',
        rules=[dict(kernel_size=3, to=dict(type='mmext.GaussianConv2d', sigma=0.5, max_sigma=2.0))],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook')]
