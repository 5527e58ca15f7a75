# A WaveMix of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(_delete_=True, type='mmext.WaveMix', arch=dict(depth=3, channels=48, levels=2), dropout=0.1),
    head=dict(in_channels=48),
)
