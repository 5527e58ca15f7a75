_base_ = 'mmpretrain::mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py'

# As many points as the stock kernels have taps, in windows about twice as large: the stock checkpoint is a start.
model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='MobileNetV3',
        rules=[
            dict(
                depthwise=True,
                kernel_size=3,
                to=dict(type='mmext.DCLSConv2d', kernel_size=7, padding=3, kernel_count=9, version='v0'),
            ),
            dict(
                depthwise=True,
                kernel_size=5,
                to=dict(type='mmext.DCLSConv2d', kernel_size=11, padding=5, kernel_count=25, version='v0'),
            ),
        ],
    )
)
optim_wrapper = dict(constructor='mmext.LayerOptionsConstructor')
custom_hooks = [dict(type='mmext.ProjectionHook'), dict(type='mmext.RepulsionHook')]
