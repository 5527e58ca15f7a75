_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# The nine taps of each 3 x 3 kernel, free in a window of 5 x 5: the stock checkpoint is a start.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='ResNet',
        rules=[
            dict(
                kernel_size=3,
                to=dict(type='mmext.DCLSConv2d', kernel_size=5, padding=2, kernel_count=9, version='v0'),
            )
        ],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook'), dict(type='mmext.RepulsionHook')]
