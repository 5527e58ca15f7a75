_base_ = 'falconnet.py'

model = dict(
    backbone=dict(
        rules=[dict(depthwise=True, stride=1, to=dict(type='mmext.InceptionDWConv2d', kernel_size=7, padding=3))],
    )
)
