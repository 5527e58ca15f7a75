# Every depthwise kernel is a weighted mean, shared by the channels of a head. It starts anew.
_base_ = 'mmseg::mobilenet_v2/mobilenet-v2-d8_fcn_4xb4-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='MobileNetV2',
        rules=[dict(depthwise=True, to=dict(type='mmext.LightConv2d'))],
    )
)
