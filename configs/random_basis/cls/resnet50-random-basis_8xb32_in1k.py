_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# Every k x k layer combines frozen random filters; the 1 x 1 layers, which only combine anyway, stay plain.
model = dict(backbone=dict(conv_cfg=dict(type='mmext.RandomBasisConv2d')))
