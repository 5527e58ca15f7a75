_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

# In the heads, which start from scratch: the backbone keeps its ImageNet weights.
conv_cfg = dict(type='mmext.PHConv2d', n=4)
model = dict(decode_head=dict(conv_cfg=conv_cfg), auxiliary_head=dict(conv_cfg=conv_cfg))
