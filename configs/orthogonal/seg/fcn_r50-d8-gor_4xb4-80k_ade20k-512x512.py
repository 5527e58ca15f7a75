_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'

custom_hooks = [dict(type='mmext.OrthogonalConvHook', method='gor', match='backbone', num_groups=32, weight=0.01)]
