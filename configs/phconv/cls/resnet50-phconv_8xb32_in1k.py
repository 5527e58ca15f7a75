_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(backbone=dict(conv_cfg=dict(type='mmext.PHConv2d', n=4)))
