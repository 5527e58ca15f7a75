_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# Layers without a stride stay plain.
model = dict(backbone=dict(conv_cfg=dict(type='mmext.SPDConv2d')))
