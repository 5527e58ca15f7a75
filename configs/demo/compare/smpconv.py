_base_ = 'falconnet.py'

model = dict(
    backbone=dict(
        rules=[dict(depthwise=True, stride=1, to=dict(type='mmext.SMPConv2d', kernel_size=7, padding=3))],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook')]
