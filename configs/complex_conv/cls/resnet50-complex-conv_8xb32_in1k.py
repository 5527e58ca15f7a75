_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# The image is real, so the stem is a plain layer; the first half of its outputs are taken for real parts from there on.
model = dict(backbone=dict(conv_cfg=dict(type='mmext.ComplexConv2d')))
