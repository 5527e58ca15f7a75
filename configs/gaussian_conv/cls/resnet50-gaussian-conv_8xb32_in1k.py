_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# Every 3 x 3 kernel with a Gaussian of its own, narrow at first and up to 2 pixels wide.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[dict(kernel_size=3, to=dict(type='mmext.GaussianConv2d', sigma=0.5, max_sigma=2.0))],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook')]
