_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# In the heads, which start from scratch; the layers that predict stay real.
conv_cfg = dict(type='mmext.BinaryWeightConv2d')
model = dict(decode_head=dict(conv_cfg=conv_cfg), auxiliary_head=dict(conv_cfg=conv_cfg))
custom_hooks = [dict(type='mmext.ProjectionHook')]
