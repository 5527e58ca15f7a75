_base_ = 'falconnet.py'

model = dict(
    backbone=dict(
        rules=[dict(depthwise=True, stride=1, to=dict(type='mmext.GaussianConv2d', kernel_size=3, padding=1))],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook')]
