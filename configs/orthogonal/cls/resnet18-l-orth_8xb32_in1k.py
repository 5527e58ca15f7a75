_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

custom_hooks = [dict(type='mmext.OrthogonalConvHook', method='l_orth', match='layer', weight=1.0)]
