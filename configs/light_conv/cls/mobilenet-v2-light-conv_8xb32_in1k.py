# Every depthwise kernel is a weighted mean, shared by the channels of a head. It starts anew.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='MobileNetV2',
        rules=[dict(depthwise=True, to=dict(type='mmext.LightConv2d'))],
    )
)
