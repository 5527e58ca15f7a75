_base_ = 'falconnet.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='mmext.FalconNet',
        rules=[dict(depthwise=True, stride=1, to=dict(type='mmext.LightConv2d', kernel_size=7, padding=3, heads=8))],
    )
)
