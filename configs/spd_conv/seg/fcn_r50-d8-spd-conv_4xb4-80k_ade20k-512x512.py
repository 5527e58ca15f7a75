_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# It starts as the base's ImageNet classifier. Layers without a stride stay plain.
model = dict(backbone=dict(conv_cfg=dict(type='mmext.SPDConv2d')))
